#include "node/rest_routes.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "node/json.h"

namespace lamina::node {
namespace {

RestAnswer Json(const google::protobuf::Message& message) {
  return {200, "application/json", ToJson(message)};
}

RestAnswer Text(int status, std::string body) { return {status, "text/plain", std::move(body)}; }

}  // namespace

const std::vector<RestRoute>& RestRoutes() {
  static const std::vector<RestRoute> routes = {
      {"/healthz", "200 while the process serves", [](const Views&) { return Text(200, "ok\n"); }, true},
      {"/readyz", "200 once claims are answered, 503 before",
       [](const Views& views) {
         return views.ready() ? Text(200, "ready\n") : Text(503, "not reconciled yet\n");
       },
       true},
      {"/metrics", "the text form, version 0.0.4",
       [](const Views& views) {
         return RestAnswer{200, "text/plain; version=0.0.4; charset=utf-8", views.MetricsText()};
       }},
      {"/v1/status", "`StatusResponse`: version, readiness, the ledger's sums, why nothing is granted",
       [](const Views& views) { return Json(views.status()); }},
      {"/v1/sandboxes", "`SandboxList`: size and why, VMM, boot phases",
       [](const Views& views) { return Json(views.sandboxes()); }},
      {"/v1/claims", "`ClaimList`: the ledger's entries and sums, NUMA nodes",
       [](const Views& views) { return Json(views.claims()); }},
      {"/v1/arenas", "`ArenaList`: size and fill", [](const Views& views) { return Json(views.arenas()); }},
      {"/v1/layers", "`LayerList`: what is where, used by whom",
       [](const Views& views) { return Json(views.layers()); }},
  };
  return routes;
}

std::vector<std::string> RestProbes() {
  std::vector<std::string> probes;
  for (const RestRoute& route : RestRoutes()) {
    if (route.probe) probes.push_back(route.path);
  }
  return probes;
}

RestAnswer AnswerRest(const Views& views, const std::string& path) {
  std::string paths;
  for (const RestRoute& route : RestRoutes()) {
    if (path == route.path) return route.answer(views);
    paths += fmt::format(" {}", route.path);
  }
  return {404, "application/json",
          nlohmann::json({{"error", "no such path; there are" + paths}}).dump() + "\n"};
}

}  // namespace lamina::node
