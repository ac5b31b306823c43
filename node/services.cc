#include "node/services.h"

#include "base/printable.h"
#include "base/status.h"

namespace lamina::node {
namespace {

constexpr size_t kMaxErrorBytes = 4096;
constexpr char kService[] = "lamina.laminad.v1.Laminad";

absl::StatusOr<laminad::v1::Empty> Plain(const absl::Status& status) {
  if (!status.ok()) return status;
  return laminad::v1::Empty();
}

grpc::Status Failed(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), Printable(Message(status), kMaxErrorBytes)};
}

}  // namespace

void RegisterShimService(ttrpc::Server& server, ClaimsEngine& claims, NodeLayers& layers) {
  using laminad::v1::Empty;
  server.Handle<laminad::v1::ClaimRequest, laminad::v1::ClaimResponse>(
      kService, "Claim",
      [&](auto& context, auto& request) { return claims.Claim(request, context.deadline); });
  server.Handle<laminad::v1::StartedRequest, Empty>(
      kService, "Started", [&](auto&, auto& request) { return Plain(claims.Started(request)); });
  server.Handle<laminad::v1::ReadyRequest, Empty>(
      kService, "Ready", [&](auto&, auto& request) { return Plain(claims.Ready(request)); });
  server.Handle<laminad::v1::RetargetRequest, Empty>(kService, "Retarget", [&](auto& context, auto& request) {
    return Plain(claims.Retarget(request, context.deadline));
  });
  server.Handle<laminad::v1::PlaceLayersRequest, laminad::v1::PlaceLayersResponse>(
      kService, "PlaceLayers", [&](auto& context, auto& request) {
        return layers.PlaceLayers(request, {context.deadline.value_or(MonotonicTime::max()), context.gone});
      });
  server.Handle<laminad::v1::ReleaseRequest, Empty>(
      kService, "Release", [&](auto&, auto& request) { return Plain(claims.Release(request)); });
}

grpc::Status GrpcService::GetStatus(grpc::ServerContext*, const v1::StatusRequest*,
                                    v1::StatusResponse* response) {
  *response = views_.status();
  return grpc::Status::OK;
}
grpc::Status GrpcService::ListSandboxes(grpc::ServerContext*, const v1::ListRequest*,
                                        v1::SandboxList* response) {
  *response = views_.sandboxes();
  return grpc::Status::OK;
}
grpc::Status GrpcService::ListClaims(grpc::ServerContext*, const v1::ListRequest*, v1::ClaimList* response) {
  *response = views_.claims();
  return grpc::Status::OK;
}
grpc::Status GrpcService::ListArenas(grpc::ServerContext*, const v1::ListRequest*, v1::ArenaList* response) {
  *response = views_.arenas();
  return grpc::Status::OK;
}
grpc::Status GrpcService::ListLayers(grpc::ServerContext*, const v1::ListRequest*, v1::LayerList* response) {
  *response = views_.layers();
  return grpc::Status::OK;
}
grpc::Status GrpcService::GcLayers(grpc::ServerContext*, const v1::GcRequest* request,
                                   v1::GcResponse* response) {
  const absl::StatusOr<uint64_t> freed = layers_.GcLayers(request->keep_bytes());
  if (!freed.ok()) return Failed(freed.status());
  response->set_freed_bytes(*freed);
  return grpc::Status::OK;
}
grpc::Status GrpcService::PackLayers(grpc::ServerContext*, const v1::PackRequest*,
                                     v1::PackResponse* response) {
  const absl::StatusOr<layers::PackResult> packed = layers_.PackLayers();
  if (!packed.ok()) return Failed(packed.status());
  response->set_moved_layers(packed->moved_layers);
  response->set_moved_bytes(packed->moved_bytes);
  response->set_removed_arenas(packed->removed_arenas);
  return grpc::Status::OK;
}

}  // namespace lamina::node
