// lamina-agent: the guest's init. See docs/guest.md.
#include "base/log.h"
#include "base/status.h"
#include "guest/agent/run.h"

int main(int argc, char** argv) {
  const auto options = lamina::guest::ParseArguments(argc, argv);
  const absl::Status status = options.ok() ? lamina::guest::RunAgent(*options) : options.status();
  if (status.ok()) return 0;
  lamina::LogError("lamina-agent: {}", lamina::Message(status));
  return 2;
}
