// What is measured of the whole chain: containerd, shim, laminad, QEMU and agent as a node has them. Each
// experiment removes the pods that it made. docs/SPECIFICATION.md says what each line means.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "tests/bench/pod/report.h"
#include "tests/e2e/kit/images.h"
#include "tests/e2e/kit/node.h"

namespace lamina::bench {

struct Bench {
  e2e::Node& node;
  const e2e::ImageKit& images;
  Report& report;
  int rounds;  // repetitions that a median is taken of
};

// One vCPU and the default memory: what most pods are.
inline e2e::PodSpec SmallPod(const std::string& name) {
  e2e::PodSpec spec;
  spec.name = name;
  spec.resources.cpu_quota = 25'000;
  spec.resources.cpu_period = 100'000;
  return spec;
}

// The time until a sandbox is ready against the same QEMU command without Lamina, in turn; by phase.
absl::Status MeasureBoot(Bench& bench);
// The second pod of an image: disk, conversions, time until its layers are mounted; then, in the last round's
// two pods, what reading a layer's file costs guest and host.
absl::Status MeasureLayers(Bench& bench);
// Output of a container to its FIFO, to kubelet's log and to an exec stream; exec against a bare crun exec.
absl::Status MeasureStreams(Bench& bench);
// Ten pods with a container each: shims, agent, laminad.
absl::Status MeasureMemory(Bench& bench);

}  // namespace lamina::bench
