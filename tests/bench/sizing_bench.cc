// How long a sizing decision takes. A shim makes one for each pod and one for each change of a container.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "base/units.h"
#include "sizing/pod.h"

namespace lamina::sizing {
namespace {

using std::chrono::steady_clock;

Limits Container(int i) {
  Limits limits;
  limits.name = fmt::format("container c{}", i);
  // Every tenth has a period of its own, every seventh no limit.
  if (i % 7 != 0) limits.cpu = {5000 + i, i % 10 == 0 ? uint64_t{10'000} * (1 + i / 10) : 100'000, {}};
  limits.memory_bytes = static_cast<int64_t>(16 * kMiB) + i;
  return limits;
}

struct Times {
  double median = 0, p99 = 0;  // microseconds
};

template <typename F>
Times Measure(F&& f) {
  std::vector<double> taken;
  for (int i = 0; i < 5000; ++i) {
    const auto start = steady_clock::now();
    f();
    taken.push_back(std::chrono::duration<double, std::micro>(steady_clock::now() - start).count());
  }
  std::sort(taken.begin(), taken.end());
  return {taken[taken.size() / 2], taken[taken.size() * 99 / 100]};
}

int Main() {
  fmt::print("| pod | plan, median | p99 | per container |\n|---|---|---|---|\n");
  uint64_t sink = 0;
  double one = 0, hundred = 0;
  for (const int count : {1, 10, 100}) {
    PlanInput input;
    input.overhead_nano_cpus = 250'000'000;
    input.overhead_memory_bytes = 96 * kMiB;
    input.default_memory_bytes = 256 * kMiB;
    for (int i = 0; i < count; ++i) input.containers.push_back(Container(i + 1));
    const Times times = Measure([&] { sink += PlanVm(input).value().memory_mib; });
    (count == 1 ? one : hundred) = times.median;
    fmt::print("| {} containers | {:.1f} us | {:.1f} us | {:.2f} us |\n", count, times.median, times.p99,
               times.median / count);
  }
  PodLimits pod;
  for (int i = 0; i < 100; ++i) pod.Add(fmt::format("c{}", i), fmt::format("id{}", i), Container(i + 1));
  const Times resize = Measure([&] {
    PodLimits changed = pod;
    Limits more = *pod.Find("id50");
    more.memory_bytes = *more.memory_bytes + 1;
    changed.Update("id50", more);
    PlanInput input;
    changed.FillIn(input);
    sink += PlanVm(input).value().memory_mib;
  });
  fmt::print("| one of 100 resized | {:.1f} us | {:.1f} us | |\n", resize.median, resize.p99);
  fmt::print("100 containers take {:.1f} times as long as one ({}).\n", hundred / one,
             sink > 0 ? "checked" : "");
  return 0;
}

}  // namespace
}  // namespace lamina::sizing

int main() { return lamina::sizing::Main(); }
