#include "base/crc32.h"

#include <array>
#include <bit>
#include <cstddef>
#include <cstring>

namespace lamina {
namespace {

// Sixteen bytes at a time, with a table for each place: kTables[k][b] is the CRC of b with k zero bytes
// behind it.
constexpr size_t kStep = 16;
using Table = std::array<uint32_t, 256>;
using Tables = std::array<Table, kStep>;

constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c & 1) != 0 ? 0xEDB88320U ^ (c >> 1) : c >> 1;
    tables[0][i] = c;
  }
  for (size_t k = 1; k < kStep; ++k) {
    for (size_t i = 0; i < 256; ++i)
      tables[k][i] = tables[0][tables[k - 1][i] & 0xFF] ^ (tables[k - 1][i] >> 8);
  }
  return tables;
}

constexpr Tables kTables = MakeTables();
static_assert(std::endian::native == std::endian::little);

// Written out: a compiler that makes a loop of it takes twice the time.
uint32_t Eight(uint64_t bytes, const Table* tables) {
  return tables[7][bytes & 0xFF] ^ tables[6][bytes >> 8 & 0xFF] ^ tables[5][bytes >> 16 & 0xFF] ^
         tables[4][bytes >> 24 & 0xFF] ^ tables[3][bytes >> 32 & 0xFF] ^ tables[2][bytes >> 40 & 0xFF] ^
         tables[1][bytes >> 48 & 0xFF] ^ tables[0][bytes >> 56];
}

}  // namespace

uint32_t Crc32(std::string_view data) {
  uint32_t crc = ~0U;
  for (; data.size() >= kStep; data.remove_prefix(kStep)) {
    uint64_t first = 0, second = 0;
    memcpy(&first, data.data(), sizeof first);
    memcpy(&second, data.data() + sizeof first, sizeof second);
    crc = Eight(first ^ crc, &kTables[8]) ^ Eight(second, &kTables[0]);
  }
  for (const char byte : data) crc = kTables[0][(crc ^ static_cast<unsigned char>(byte)) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

}  // namespace lamina
