// The configuration: any text is a configuration or an error that names the file.
#include <string>
#include <string_view>

#include "base/config.h"
#include "base/status.h"
#include "tests/fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config = lamina::ParseConfig({reinterpret_cast<const char*>(data), size}, "lamina.toml");
  if (!config.ok()) {
    FUZZ_CHECK(lamina::Message(config.status()).find("lamina.toml") != std::string::npos);
    return 0;
  }
  FUZZ_CHECK(config->sizing.overhead_nano_cpus >= 0 && config->sizing.default_nano_cpus >= 0);
  FUZZ_CHECK(config->layers.policy == "dense" || config->layers.policy == "classic");
  return 0;
}
