#include "node/services.h"

#include "base/status.h"
#include "node/json.h"

namespace lamina::node {
namespace {

constexpr char kService[] = "lamina.laminad.v1.Laminad";

absl::StatusOr<laminad::v1::Empty> Plain(const absl::Status& status) {
  if (!status.ok()) return status;
  return laminad::v1::Empty();
}

RestAnswer Json(const google::protobuf::Message& message) {
  return {200, "application/json", ToJson(message)};
}

}  // namespace

void RegisterShimService(ttrpc::Server& server, NodeState& state) {
  using laminad::v1::Empty;
  server.Handle<laminad::v1::ClaimRequest, laminad::v1::ClaimResponse>(
      kService, "Claim",
      [&](auto& context, auto& request) { return state.Claim(request, context.deadline); });
  server.Handle<laminad::v1::StartedRequest, Empty>(
      kService, "Started", [&](auto&, auto& request) { return Plain(state.Started(request)); });
  server.Handle<laminad::v1::ReadyRequest, Empty>(
      kService, "Ready", [&](auto&, auto& request) { return Plain(state.Ready(request)); });
  server.Handle<laminad::v1::RetargetRequest, Empty>(kService, "Retarget", [&](auto& context, auto& request) {
    return Plain(state.Retarget(request, context.deadline));
  });
  server.Handle<laminad::v1::PlaceLayersRequest, laminad::v1::PlaceLayersResponse>(
      kService, "PlaceLayers", [&](auto& context, auto& request) {
        return state.PlaceLayers(request, {context.deadline.value_or(MonotonicTime::max()), context.gone});
      });
  server.Handle<laminad::v1::ReleaseRequest, Empty>(
      kService, "Release", [&](auto&, auto& request) { return Plain(state.Release(request)); });
}

RestAnswer AnswerRest(NodeState& state, const std::string& path) {
  if (path == "/healthz") return {200, "text/plain", "ok\n"};
  if (path == "/readyz") {
    return state.ready() ? RestAnswer{200, "text/plain", "ready\n"}
                         : RestAnswer{503, "text/plain", "not reconciled yet\n"};
  }
  if (path == "/metrics") return {200, "text/plain; version=0.0.4; charset=utf-8", state.MetricsText()};
  if (path == "/v1/status") return Json(state.status());
  if (path == "/v1/sandboxes") return Json(state.sandboxes());
  if (path == "/v1/claims") return Json(state.claims());
  if (path == "/v1/arenas") return Json(state.arenas());
  if (path == "/v1/layers") return Json(state.layers());
  return {404, "application/json",
          "{\"error\": \"no such path; there are /healthz /readyz /metrics /v1/status /v1/sandboxes "
          "/v1/claims /v1/arenas /v1/layers\"}\n"};
}

grpc::Status GrpcService::GetStatus(grpc::ServerContext*, const v1::StatusRequest*,
                                    v1::StatusResponse* response) {
  *response = state_.status();
  return grpc::Status::OK;
}
grpc::Status GrpcService::ListSandboxes(grpc::ServerContext*, const v1::ListRequest*,
                                        v1::SandboxList* response) {
  *response = state_.sandboxes();
  return grpc::Status::OK;
}
grpc::Status GrpcService::ListClaims(grpc::ServerContext*, const v1::ListRequest*, v1::ClaimList* response) {
  *response = state_.claims();
  return grpc::Status::OK;
}
grpc::Status GrpcService::ListArenas(grpc::ServerContext*, const v1::ListRequest*, v1::ArenaList* response) {
  *response = state_.arenas();
  return grpc::Status::OK;
}
grpc::Status GrpcService::ListLayers(grpc::ServerContext*, const v1::ListRequest*, v1::LayerList* response) {
  *response = state_.layers();
  return grpc::Status::OK;
}
grpc::Status GrpcService::GcLayers(grpc::ServerContext*, const v1::GcRequest* request,
                                   v1::GcResponse* response) {
  const absl::StatusOr<uint64_t> freed = state_.GcLayers(request->keep_bytes());
  if (!freed.ok()) return {static_cast<grpc::StatusCode>(freed.status().code()), Message(freed.status())};
  response->set_freed_bytes(*freed);
  return grpc::Status::OK;
}
grpc::Status GrpcService::PackLayers(grpc::ServerContext*, const v1::PackRequest*,
                                     v1::PackResponse* response) {
  const absl::StatusOr<layers::PackResult> packed = state_.PackLayers();
  if (!packed.ok()) return {static_cast<grpc::StatusCode>(packed.status().code()), Message(packed.status())};
  response->set_moved_layers(packed->moved_layers);
  response->set_moved_bytes(packed->moved_bytes);
  response->set_removed_arenas(packed->removed_arenas);
  return grpc::Status::OK;
}

}  // namespace lamina::node
