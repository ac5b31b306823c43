// Whatever QEMU writes: the parser answers or refuses, in bounded stack.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "vmm/qmp_client.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  const auto message = lamina::vmm::ParseQmpLine(line);
  if (!message.ok()) return 0;
  // What came out as a return is JSON that can go in again, and stays as it is.
  if (message->kind == lamina::vmm::QmpMessage::kReturn) {
    const auto again = lamina::vmm::ParseQmpLine("{\"return\":" + message->return_json + "}");
    if (!again.ok() || again->return_json != message->return_json) abort();
  }
  return 0;
}
