#include "node/rest_server.h"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "node/inner_network.h"

namespace lamina::node {
namespace {

constexpr int kPortTries = 5;

absl::StatusOr<std::string> Secret() {
  std::array<unsigned char, 32> bytes;
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
    return ErrnoStatus(errno, "random bytes of the kernel");
  std::string text;
  for (const unsigned char byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

void WarnOfWeakness(const RestOptions& options, const RestFront& front, const InnerNetwork& network) {
  if (!network.why_open().empty()) {
    LogWarning(
        "REST's inner listener has no network of its own ({}): users of this node can reach it on the "
        "loopback, and "
        "though they are told nothing there, what they send is not bounded. laminad needs CAP_SYS_ADMIN and "
        "CAP_NET_ADMIN",
        network.why_open());
  }
  if (front.loopback()) return;
  if (options.files.token.empty()) {
    LogWarning(
        "REST at {} tells everybody who reaches it the names of pods and namespaces: set "
        "laminad.rest_token_file, or "
        "let a NetworkPolicy say who may reach it",
        options.address);
  } else if (options.files.certificate.empty()) {
    LogWarning(
        "REST at {} takes its token over plain HTTP: set laminad.rest_tls_certificate and "
        "laminad.rest_tls_key",
        options.address);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<RestServer>> RestServer::Listen(RestOptions options, RestHandler handler) {
  const std::string what = "REST at " + options.address;
  absl::StatusOr<RestCredentials> credentials = RestCredentials::Load(options.files);
  if (!credentials.ok()) return Annotate(credentials.status(), what);
  ASSIGN_OR_RETURN(
      std::unique_ptr<RestFront> front,
      RestFront::Bind({options.address, options.open_paths, options.limits}, std::move(*credentials)));
  const absl::StatusOr<const InnerNetwork*> network = InnerNetwork::Get();
  if (!network.ok()) return Annotate(network.status(), what);
  ASSIGN_OR_RETURN(const std::string secret, Secret());
  std::unique_ptr<RestListener> listener;
  for (int tries = 1; listener == nullptr; ++tries) {
    ASSIGN_OR_RETURN(const uint16_t port, (*network)->FreePort());
    absl::StatusOr<std::unique_ptr<RestListener>> made = RestListener::Listen(port, secret, handler);
    if (made.ok()) {
      listener = std::move(*made);
      RETURN_IF_ERROR(front->Serve(**network, port, secret));
    } else if (tries == kPortTries) {
      return made.status();
    }
  }
  WarnOfWeakness(options, *front, **network);
  return std::unique_ptr<RestServer>(new RestServer(std::move(listener), std::move(front)));
}

}  // namespace lamina::node
