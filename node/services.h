// The three ways to reach a NodeState.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "base/ttrpc/server.h"
#include "node/node_state.h"
#include "node/rest_server.h"
#include "proto/node/node.grpc.pb.h"

namespace lamina::node {

// The shims' protocol (proto/laminad.proto).
void RegisterShimService(ttrpc::Server& server, NodeState& state);

// Routes of the REST interface.
RestAnswer AnswerRest(NodeState& state, const std::string& path);

class GrpcService : public lamina::node::v1::Node::Service {
 public:
  explicit GrpcService(NodeState& state) : state_(state) {}
  grpc::Status GetStatus(grpc::ServerContext*, const v1::StatusRequest*, v1::StatusResponse*) override;
  grpc::Status ListSandboxes(grpc::ServerContext*, const v1::ListRequest*, v1::SandboxList*) override;
  grpc::Status ListClaims(grpc::ServerContext*, const v1::ListRequest*, v1::ClaimList*) override;
  grpc::Status ListArenas(grpc::ServerContext*, const v1::ListRequest*, v1::ArenaList*) override;
  grpc::Status ListLayers(grpc::ServerContext*, const v1::ListRequest*, v1::LayerList*) override;
  grpc::Status GcLayers(grpc::ServerContext*, const v1::GcRequest*, v1::GcResponse*) override;
  grpc::Status PackLayers(grpc::ServerContext*, const v1::PackRequest*, v1::PackResponse*) override;

 private:
  NodeState& state_;
};

}  // namespace lamina::node
