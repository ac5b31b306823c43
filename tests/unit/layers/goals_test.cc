// How tightly dense packs; layers_bench prints the same experiments for both policies.
#include <gtest/gtest.h>

#include "tests/bench/layers_trace.h"

namespace lamina::layers {
namespace {

TEST(DensePolicy, FillsItsDevices) {
  double four = 0, one = 0, efficiency = 0, classic = 0;
  constexpr int kSeeds = 20;
  for (uint64_t seed = 101; seed < 101 + kSeeds; ++seed) {
    const FillResult filled = FillToFirstMiss(Policy::kDense, 4, seed);
    four += filled.used / kSeeds;
    efficiency += filled.efficiency / kSeeds;
    one += FillToFirstMiss(Policy::kDense, 1, seed).used / kSeeds;
    classic += FillToFirstMiss(Policy::kClassic, 4, seed).used / kSeeds;
  }
  EXPECT_GE(four, 0.92);
  EXPECT_GE(one, 0.72);
  EXPECT_GE(efficiency, 0.97);
  EXPECT_LT(classic, 0.6) << "the generator no longer shows what classes cost";
}

TEST(DensePolicy, NeedsFewDevicesEvenAfterManyReplacements) {
  double fresh = 0, after = 0;
  constexpr int kSeeds = 4;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const LiveResult live = DevicesForLive(Policy::kDense, 64 * kGiB, 100'000, seed);
    fresh += static_cast<double>(live.fresh) / kSeeds;
    after += static_cast<double>(live.after) / kSeeds;
    EXPECT_GE(live.efficiency, 0.97);
  }
  EXPECT_LE(fresh, 18);
  EXPECT_LE(after, 26);
}

}  // namespace
}  // namespace lamina::layers
