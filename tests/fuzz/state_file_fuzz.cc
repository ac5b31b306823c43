// A sandbox's state file: damaged in any way it is an error; what is read can be written and read again.
#include <string>

#include "base/safe_id.h"
#include "base/status.h"
#include "persist/sandbox_state.h"
#include "tests/fuzz/check.h"

namespace {

void Check(const std::string& content) {
  const auto state = lamina::persist::DecodeState(content, "f");
  if (!state.ok()) {
    FUZZ_CHECK(lamina::Message(state.status()).rfind("f: ", 0) == 0);
    return;
  }
  FUZZ_CHECK(lamina::IsSafeId(state->sandbox_id));
  const std::string again = lamina::persist::EncodeState(*state);
  const auto reread = lamina::persist::DecodeState(again, "f");
  FUZZ_CHECK(reread.ok());
  FUZZ_CHECK(lamina::persist::EncodeState(*reread) == again);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 4 == 0) {
    Check(text);
    return 0;
  }
  // Past the checksum, which the error about a wrong one tells.
  const int version = 1 + data[0] % 2;
  const std::string wrong = fmt::format("lamina-state {} 00000000\n{}", version, text);
  const std::string message = lamina::Message(lamina::persist::DecodeState(wrong, "f").status());
  const size_t at = message.find("checksum ");
  if (at == std::string::npos) return 0;
  Check(fmt::format("lamina-state {} {}\n{}", version, message.substr(at + 9, 8), text));
  return 0;
}
