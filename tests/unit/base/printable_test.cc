#include "base/printable.h"

#include <gtest/gtest.h>

#include <string>

namespace lamina {
namespace {

TEST(Printable, LeavesPrintableTextAlone) {
  EXPECT_EQ(Printable("", 512), "");
  EXPECT_EQ(Printable("open \"/x\": no such file ~", 512), "open \"/x\": no such file ~");
  EXPECT_EQ(Printable(std::string(512, 'x'), 512), std::string(512, 'x'));
}

TEST(Printable, EscapesTheRest) {
  EXPECT_EQ(Printable("a\nb\tc\rd\x1b[31m", 512), "a\\nb\\tc\\x0dd\\x1b[31m");
  EXPECT_EQ(Printable(std::string("\0\x7f\xc3\xbc\xff", 5), 512), "\\x00\\x7f\\xc3\\xbc\\xff");
}

TEST(Printable, CutsBetweenCharacters) {
  std::string cut(509, 'x');
  cut.append(3, '.');
  EXPECT_EQ(Printable(std::string(513, 'x'), 512), cut);
  EXPECT_EQ(Printable("abcd\n", 6), "abcd\\n");
  EXPECT_EQ(Printable("abcde\n", 6), "abc...");
  EXPECT_EQ(Printable("\xff\xff\xff", 8), "\\xff...");
  EXPECT_LE(Printable(std::string(4 << 20, '\xff'), 512).size(), 512U);
}

}  // namespace
}  // namespace lamina
