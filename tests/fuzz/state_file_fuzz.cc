// A sandbox's state file: damaged in any way it is an error; what is read can be written and read again.
#include <string>

#include "base/crc32.h"
#include "base/framing.h"
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
  // Past the checksum, of each version.
  const int version = data[0] % 4;
  if (version == 3) {
    Check(lamina::EncodeFrame({"state", 3, 3}, text));
  } else {
    Check(fmt::format("lamina-state {} {:08x}\n{}", version, lamina::Crc32(text), text));
  }
  return 0;
}
