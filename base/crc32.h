#pragma once

#include <cstdint>
#include <string_view>

namespace lamina {

// As zlib and PNG count it (polynomial 0xEDB88320, reflected).
uint32_t Crc32(std::string_view data);

}  // namespace lamina
