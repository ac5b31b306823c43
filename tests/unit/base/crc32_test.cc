#include "base/crc32.h"

#include <gtest/gtest.h>

#include <string>

namespace lamina {
namespace {

TEST(Crc32, IsTheOneThatZlibCounts) {
  EXPECT_EQ(Crc32(""), 0U);
  EXPECT_EQ(Crc32("123456789"), 0xCBF43926U);  // the check value of the CRC catalogues
  EXPECT_EQ(Crc32("The quick brown fox jumps over the lazy dog"), 0x414FA339U);
  EXPECT_EQ(Crc32(std::string_view("\0\0\0\0", 4)), 0x2144DF1CU);
}

// Bytes that fill a word and bytes that do not.
TEST(Crc32, CountsAnyLengthAsBitByBit) {
  std::string data;
  for (int i = 0; i < 70; ++i) {
    uint32_t crc = ~0U;
    for (const char c : data) {
      crc ^= static_cast<unsigned char>(c);
      for (int k = 0; k < 8; ++k) crc = (crc & 1) != 0 ? 0xEDB88320U ^ (crc >> 1) : crc >> 1;
    }
    EXPECT_EQ(Crc32(data), ~crc) << data.size();
    data.push_back(static_cast<char>(i * 37 + 200));
  }
}

}  // namespace
}  // namespace lamina
