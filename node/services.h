// The shims' and the CLI's way to the engine.
#pragma once

#include <grpcpp/grpcpp.h>

#include "base/ttrpc/server.h"
#include "node/claims_engine.h"
#include "node/node_layers.h"
#include "node/views.h"
#include "proto/node/node.grpc.pb.h"

namespace lamina::node {

// The shims' protocol (proto/laminad.proto).
void RegisterShimService(ttrpc::Server& server, ClaimsEngine& claims, NodeLayers& layers);

class GrpcService : public lamina::node::v1::Node::Service {
 public:
  GrpcService(const Views& views, NodeLayers& layers) : views_(views), layers_(layers) {}
  grpc::Status GetStatus(grpc::ServerContext*, const v1::StatusRequest*, v1::StatusResponse*) override;
  grpc::Status ListSandboxes(grpc::ServerContext*, const v1::ListRequest*, v1::SandboxList*) override;
  grpc::Status ListClaims(grpc::ServerContext*, const v1::ListRequest*, v1::ClaimList*) override;
  grpc::Status ListArenas(grpc::ServerContext*, const v1::ListRequest*, v1::ArenaList*) override;
  grpc::Status ListLayers(grpc::ServerContext*, const v1::ListRequest*, v1::LayerList*) override;
  grpc::Status GcLayers(grpc::ServerContext*, const v1::GcRequest*, v1::GcResponse*) override;
  grpc::Status PackLayers(grpc::ServerContext*, const v1::PackRequest*, v1::PackResponse*) override;

 private:
  const Views& views_;
  NodeLayers& layers_;
};

}  // namespace lamina::node
