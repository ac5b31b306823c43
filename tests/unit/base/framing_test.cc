#include "base/framing.h"

#include <gtest/gtest.h>

#include "base/crc32.h"
#include "tests/testing/status_matchers.h"

namespace lamina {
namespace {

using absl::StatusCode;
using testing::HasStatus;

constexpr FrameKind kKind{"test", 2, 3};
const FramedFile kFile{"/x/file", "ask somebody"};

// A frame whose line has any words and the right checksum.
std::string WithLine(const std::string& words, const std::string& payload) {
  const std::string line = words + " ";
  return line + fmt::format("{:08x}\n", Crc32(line)) + payload;
}
std::string Line(const std::string& version, const std::string& length, const std::string& payload) {
  return WithLine(fmt::format("lamina-test {} {} {:08x}", version, length, Crc32(payload)), payload);
}
// Nobody believes it, whoever asks.
void ExpectDamaged(const std::string& content, const std::string& why) {
  EXPECT_THAT(NextFrame(kKind, content, kFile), HasStatus(StatusCode::kDataLoss, why)) << content;
  EXPECT_THAT(OnlyFrame(kKind, content, kFile), HasStatus(StatusCode::kDataLoss, why)) << content;
  EXPECT_EQ(FindFrame(kKind, content, 0), std::nullopt) << content;
}

TEST(Framing, AFrameIsALineThatPeopleCanReadAndThePayload) {
  EXPECT_EQ(
      EncodeFrame(kKind, "hello\n"),
      "lamina-test 3 6 363a3020 " + fmt::format("{:08x}", Crc32("lamina-test 3 6 363a3020 ")) + "\nhello\n");
}

TEST(Framing, WhatIsPutInComesOut) {
  for (const std::string& payload : {std::string(), std::string("x"), std::string("a\0\n\xff", 4),
                                     EncodeFrame(kKind, "inner"), std::string(1 << 20, 'x')}) {
    const std::string content = EncodeFrame(kKind, payload);
    ASSERT_OK_AND_ASSIGN(const Frame frame, OnlyFrame(kKind, content, kFile));
    EXPECT_EQ(frame.version, 3);
    EXPECT_EQ(frame.payload, payload);
    EXPECT_EQ(frame.size, content.size());
  }
}

TEST(Framing, FramesFollowOneAnother) {
  const std::string first = EncodeFrame(kKind, "one"), content = first + EncodeFrame(kKind, "two") + "rest";
  ASSERT_OK_AND_ASSIGN(const Frame one, NextFrame(kKind, content, kFile));
  EXPECT_EQ(one.payload, "one");
  ASSERT_EQ(one.size, first.size());
  ASSERT_OK_AND_ASSIGN(const Frame two, NextFrame(kKind, std::string_view(content).substr(one.size), kFile));
  EXPECT_EQ(two.payload, "two");
  EXPECT_THAT(
      OnlyFrame(kKind, content, kFile),
      HasStatus(StatusCode::kDataLoss, "/x/file: damaged (41 bytes too many at its end); ask somebody"));
}

TEST(Framing, AChangeOfAnyBitIsSeen) {
  const std::string content = EncodeFrame(kKind, "some payload\n");
  for (size_t at = 0; at < content.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = content;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      ExpectDamaged(bad, "/x/file: damaged (");
    }
  }
}

TEST(Framing, EveryTruncationIsSeen) {
  const std::string content = EncodeFrame(kKind, "some payload\n");
  for (size_t size = 0; size < content.size(); ++size)
    ExpectDamaged(content.substr(0, size), "/x/file: damaged (");
  ExpectDamaged(content.substr(0, content.size() - 1), "12 bytes follow its first line, which says 13");
}

TEST(Framing, ALengthIsBelievedOnlyAsFarAsTheContentReaches) {
  EXPECT_OK(NextFrame(kKind, Line("3", "5", "12345"), kFile));
  ExpectDamaged(Line("3", "6", "12345"), "5 bytes follow its first line, which says 6");
  ExpectDamaged(Line("3", "4294967301", "12345"), "which says 4294967301");                      // 2^32 + 5
  ExpectDamaged(Line("3", "18446744073709551615", "12345"), "which says 18446744073709551615");  // 2^64 - 1
  ExpectDamaged(Line("3", "18446744073709551621", "12345"), "its first line is not");            // 2^64 + 5
  for (const char* length : {"-1", "+5", "0x5", "5.", "", " 5", "5 5"})
    ExpectDamaged(Line("3", length, "12345"), "its first line is not");
}

TEST(Framing, ANewerVersionIsNotDamageWhateverElseItHolds) {
  for (const std::string& content :
       {Line("4", "5", "12345"), Line("2147483647", "5", "12345"), Line("4", "lots", "12345"),
        WithLine("lamina-test 4", ""), WithLine("lamina-test 4 of another form", "x"),
        EncodeFrame({"test", 1, 4}, "payload")}) {
    EXPECT_THAT(NextFrame(kKind, content, kFile),
                HasStatus(StatusCode::kFailedPrecondition, "/x/file: written by a newer Lamina (version "))
        << content;
    EXPECT_THAT(NextFrame(kKind, content, kFile),
                HasStatus(StatusCode::kFailedPrecondition, "left untouched"));
    EXPECT_EQ(FindFrame(kKind, content, 0), 0U) << "it is whole as far as anyone can tell";
  }
  // Of a line that is damaged nobody knows the version.
  ExpectDamaged("lamina-test 4 5 cbf53a1c 00000000\n12345", "its first line's checksum is wrong");
  ExpectDamaged(Line("99999999999", "5", "12345"), "its first line names no version");
}

TEST(Framing, OlderVersionsAreReadFromTheFirstThatWasFramed) {
  ASSERT_OK_AND_ASSIGN(const Frame frame, NextFrame(kKind, Line("2", "5", "12345"), kFile));
  EXPECT_EQ(frame.version, 2);
  ExpectDamaged(Line("1", "5", "12345"), "version 1 had another first line");
  for (const char* version : {"0", "-1", "", "three", "3three"})
    ExpectDamaged(Line(version, "5", "12345"), "its first line names no version");
}

TEST(Framing, AnotherKindIsNotTakenForThisOne) {
  for (const char* name : {"tes", "tests", "", "other"})
    ExpectDamaged(EncodeFrame({name, 1, 3}, "x"), "it does not begin with \"lamina-test \"");
}

TEST(Framing, ALineHasTheseWordsAndNoMore) {
  const std::string sum = fmt::format("{:08x}", Crc32("x"));
  EXPECT_OK(NextFrame(kKind, WithLine("lamina-test 3 1 " + sum, "x"), kFile));
  ExpectDamaged(WithLine("lamina-test 3 1 " + sum + " more", "x"), "its first line is not");
  ExpectDamaged(WithLine("lamina-test 3 1  " + sum, "x"), "its first line is not");
  ExpectDamaged(WithLine("lamina-test 3 1", "x"), "its first line is not");
  ExpectDamaged(WithLine("lamina-test 3", "x"), "its first line is not");
  ExpectDamaged(WithLine("lamina-test", "x"), "its first line names no version");
  ExpectDamaged("lamina-test \nx", "its first line's checksum is wrong");
  ExpectDamaged(WithLine("lamina-test 4 " + std::string(200, 'x'), "x"), "its first line has no end");
}

TEST(Framing, AWholeFrameIsFoundBehindDamage) {
  const std::string frame = EncodeFrame(kKind, "payload"), half = frame.substr(0, frame.size() / 2);
  const std::string content = half + frame + "lamina-test " + frame;
  EXPECT_EQ(FindFrame(kKind, content, 0), half.size());
  EXPECT_EQ(FindFrame(kKind, content, half.size()), half.size());
  EXPECT_EQ(FindFrame(kKind, content, half.size() + 1), half.size() + frame.size() + 12);
  EXPECT_EQ(FindFrame(kKind, content, content.size()), std::nullopt);
  EXPECT_EQ(FindFrame(kKind, content, content.size() + 1), std::nullopt);
}

TEST(Framing, WithoutAdviceTheSentenceEndsEarlier) {
  EXPECT_THAT(DamagedFile({"/x", ""}, "why"), HasStatus(StatusCode::kDataLoss));
  EXPECT_EQ(Message(DamagedFile({"/x", ""}, "why")), "/x: damaged (why)");
  EXPECT_EQ(Message(DamagedFile({"/x", "do it"}, "why")), "/x: damaged (why); do it");
}

}  // namespace
}  // namespace lamina
