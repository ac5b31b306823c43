#include "guest/protocol/greeting.h"

#include <sys/random.h>

#include <string>

#include "base/printable.h"
#include "base/status.h"
#include "guest/protocol/clock_sync.h"
#include "guest/protocol/contract.h"

namespace lamina::guest {

absl::StatusOr<agent::v1::HelloResponse> Greet(ttrpc::Caller& agent, std::chrono::nanoseconds timeout) {
  agent::v1::HelloRequest hello;
  hello.set_protocol_version(kProtocolVersion);
  std::string seed(kMaxRandomSeedBytes, '\0');
  // So few bytes come whole, or not at all while the host's own pool is empty: then the guest keeps to its
  // own.
  if (getrandom(seed.data(), seed.size(), GRND_NONBLOCK) == static_cast<ssize_t>(seed.size()))
    hello.set_random_seed(seed);
  ASSIGN_OR_RETURN(agent::v1::HelloResponse answer, ttrpc::Call(agent, kHello, hello, timeout));
  if (answer.protocol_version() != kProtocolVersion) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "the guest image's agent {} speaks protocol {}, this host {}: rebuild the guest image",
                      Printable(answer.agent_version(), 32), answer.protocol_version(), kProtocolVersion);
  }
  // Only now: a time that was told with the hello would have waited in the port for as long as the boot took.
  RETURN_IF_ERROR(Annotate(SyncClock(agent).status(), "set the guest's clock"));
  return answer;
}

}  // namespace lamina::guest
