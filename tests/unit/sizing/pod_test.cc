#include "sizing/pod.h"

#include <gtest/gtest.h>

#include <random>

#include "base/units.h"
#include "tests/testing/status_matchers.h"

namespace lamina::sizing {
namespace {

Limits Of(const std::string& name, int64_t milli, int64_t mib) {
  Limits limits;
  limits.name = name;
  if (milli > 0) limits.cpu = {milli * 100, 100'000, {}};
  if (mib > 0) limits.memory_bytes = mib << 20;
  return limits;
}

VmPlan Plan(const PodLimits& pod) {
  PlanInput input;
  input.default_memory_bytes = 256 * kMiB;
  pod.FillIn(input);
  const auto plan = PlanVm(input);
  EXPECT_OK(plan);
  return plan.value_or(VmPlan());
}

TEST(PodLimits, TheSumCoversContainersThatAreStillToCome) {
  PodLimits pod(Of("sandbox", 3000, 300), {});
  EXPECT_EQ(Plan(pod).vcpus, 3u);
  pod.Add("a", "1", Of("a", 1000, 100));
  EXPECT_EQ(Plan(pod).vcpus, 3u);
  EXPECT_EQ(Plan(pod).memory_mib, 300u);
  pod.Remove("1");
  EXPECT_EQ(Plan(pod).memory_mib, 300u);
}

TEST(PodLimits, AContainerThatTheSumDoesNotKnowGrowsThePodWhileItIsThere) {
  PodLimits pod(Of("sandbox", 1000, 100), {});
  pod.Add("a", "1", Of("a", 1000, 100));
  pod.Add("late", "2", Of("late", 2000, 50));
  EXPECT_EQ(Plan(pod).vcpus, 3u);
  EXPECT_EQ(Plan(pod).memory_mib, 150u);
  pod.Remove("2");
  EXPECT_EQ(Plan(pod).vcpus, 1u);
  EXPECT_EQ(Plan(pod).memory_mib, 100u);
}

TEST(PodLimits, ResizesMoveTheSumBothWaysAndOutliveARestart) {
  PodLimits pod(Of("sandbox", 3000, 300), {});
  pod.Add("a", "1", Of("a", 1000, 100));
  pod.Update("1", Of("a", 2000, 200));
  pod.Update("1", Of("a", 2000, 200));  // the kubelet repeats it
  EXPECT_EQ(Plan(pod).vcpus, 4u);
  EXPECT_EQ(Plan(pod).memory_mib, 400u);
  pod.Update("1", Of("a", 500, 20));
  EXPECT_EQ(Plan(pod).vcpus_exact, "2.5");
  EXPECT_EQ(Plan(pod).memory_mib, 220u);
  // Its successor comes with the limits of now, before or after the old one has gone.
  pod.Add("a", "2", Of("a", 500, 20));
  pod.Remove("1");
  EXPECT_EQ(Plan(pod).vcpus_exact, "2.5");
  pod.Remove("2");
  EXPECT_EQ(Plan(pod).vcpus_exact, "2.5") << "down, but not forgotten";
  pod.Add("a", "3", Of("a", 1000, 100));
  pod.Remove("3");
  EXPECT_EQ(pod.parts().size(), 0u) << "as the pod's sum has it: nothing to remember";
  EXPECT_EQ(Plan(pod).vcpus, 3u);
}

TEST(PodLimits, ALimitGivenLaterEndsTheDefault) {
  PodLimits pod(Of("sandbox", 500, 64), {});
  pod.Add("a", "1", Of("a", 500, 64));
  pod.Add("b", "2", Of("b", 0, 0));
  EXPECT_EQ(Plan(pod).vcpus_exact, "1.5");
  EXPECT_EQ(Plan(pod).memory_mib, 320u);
  pod.Update("2", Of("b", 250, 32));
  EXPECT_EQ(Plan(pod).vcpus_exact, "0.75");
  EXPECT_EQ(Plan(pod).memory_mib, 96u);
}

// Any order of events gives what the rule says of the state they lead to.
TEST(PodLimits, AgreesWithTheRuleAfterAnyHistory) {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    struct Model {
      int64_t first = 0, now = 0;
      std::string id;
    };
    std::map<std::string, Model> model;
    const int64_t sum = 100 * (1 + random() % 40);
    PodLimits pod(Of("sandbox", sum, sum), {});
    int next = 0;
    for (int step = 0; step < 30; ++step) {
      const std::string name(1, static_cast<char>('a' + random() % 4));
      const int64_t milli = 100 * (1 + random() % 20);
      const auto it = model.find(name);
      switch (random() % 3) {
        case 0: {
          const std::string id = std::to_string(++next);
          pod.Add(name, id, Of(name, milli, milli));
          if (it == model.end()) {
            model[name] = {milli, milli, id};
          } else {
            it->second.now = milli;
            it->second.id = id;
          }
          break;
        }
        case 1:
          if (it == model.end() || it->second.id.empty()) break;
          pod.Update(it->second.id, Of(name, milli, milli));
          it->second.now = milli;
          break;
        default:
          if (it == model.end() || it->second.id.empty()) break;
          pod.Remove(it->second.id);
          it->second.id.clear();
          if (it->second.first == it->second.now) model.erase(it);
      }
      int64_t moved = sum, there = 0;
      for (const auto& [key, part] : model) {
        moved += part.now - part.first;
        if (!part.id.empty()) there += part.now;
      }
      const int64_t most = std::max({moved, there, int64_t{0}});
      if (most == 0) continue;  // no limit is left: the default
      const VmPlan plan = Plan(pod);
      ASSERT_EQ(plan.limit_nano_cpus, most * 1'000'000);
      ASSERT_EQ(plan.limit_memory_bytes, static_cast<uint64_t>(most) << 20);
      ASSERT_EQ(plan.vcpus, static_cast<uint32_t>((most + 999) / 1000));
    }
  }
}

}  // namespace
}  // namespace lamina::sizing
