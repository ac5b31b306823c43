#include "base/ttrpc/frame.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/testing/status_matchers.h"

namespace lamina::ttrpc {
namespace {

TEST(Frame, RoundTripInAnySlicing) {
  std::mt19937 random(7);
  std::string wire;
  std::vector<Frame> sent;
  for (int i = 0; i < 200; ++i) {
    Frame frame;
    frame.stream_id = random();
    frame.type = static_cast<FrameType>(1 + random() % 3);
    frame.flags = static_cast<uint8_t>(random());
    frame.payload.assign(random() % 3000, static_cast<char>(random()));
    wire += *EncodeFrame(frame);
    sent.push_back(frame);
  }
  FrameReader reader;
  size_t received = 0;
  for (size_t at = 0; at < wire.size();) {
    const size_t n = std::min<size_t>(1 + random() % 5000, wire.size() - at);
    reader.Feed(std::string_view(wire).substr(at, n));
    at += n;
    Frame frame;
    for (;;) {
      const auto more = reader.Next(frame);
      ASSERT_OK(more);
      if (!*more) break;
      ASSERT_LT(received, sent.size());
      EXPECT_EQ(frame.stream_id, sent[received].stream_id);
      EXPECT_EQ(frame.payload, sent[received].payload);
      EXPECT_EQ(frame.flags, sent[received].flags);
      ++received;
    }
  }
  EXPECT_EQ(received, sent.size());
}

TEST(Frame, KnownBytes) {
  Frame frame;
  frame.stream_id = 0x01020304;
  frame.type = FrameType::kResponse;
  frame.payload = "ab";
  EXPECT_EQ(*EncodeFrame(frame), std::string("\0\0\0\2\1\2\3\4\2\0ab", 12));
}

TEST(Frame, OversizedIsDiscardedAndTheStreamGoesOn) {
  const uint32_t length = kMaxPayloadBytes + 5;
  std::string wire = {static_cast<char>(length >> 24),
                      static_cast<char>(length >> 16),
                      static_cast<char>(length >> 8),
                      static_cast<char>(length),
                      0,
                      0,
                      0,
                      9,
                      1,
                      0};
  FrameReader reader;
  reader.Feed(wire);
  Frame frame;
  ASSERT_TRUE(*reader.Next(frame));
  EXPECT_TRUE(frame.oversized);
  EXPECT_EQ(frame.stream_id, 9u);
  const std::string chunk(100'000, 'x');
  for (size_t fed = 0; fed < length;) {
    const size_t n = std::min<size_t>(chunk.size(), length - fed);
    reader.Feed(std::string_view(chunk).substr(0, n));
    fed += n;
    ASSERT_FALSE(*reader.Next(frame));
  }
  Frame next;
  next.payload = "after";
  reader.Feed(*EncodeFrame(next));
  ASSERT_TRUE(*reader.Next(frame));
  EXPECT_EQ(frame.payload, "after");
  Frame big;
  big.payload.resize(kMaxPayloadBytes + 1);
  EXPECT_THAT(EncodeFrame(big), testing::HasStatus(absl::StatusCode::kResourceExhausted, "limit"));
}

TEST(Frame, UnknownTypeIsAnError) {
  FrameReader reader;
  reader.Feed(std::string("\0\0\0\0\0\0\0\1\7\0", 10));
  Frame frame;
  EXPECT_THAT(reader.Next(frame), testing::HasStatus(absl::StatusCode::kInvalidArgument, "type 7"));
}

}  // namespace
}  // namespace lamina::ttrpc
