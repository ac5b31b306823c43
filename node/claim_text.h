// What a pod's author or a shim wrote into a claim, before it is written down, shown or made a label of a
// series.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "proto/laminad.pb.h"

namespace lamina::node {

inline constexpr size_t kMaxNameBytes = 253;  // a DNS name's

// Namespace, name and uid of the pod are printable ASCII of 253 bytes at most, as Kubernetes' own are shorter
// still. InvalidArgument names the field and shows the value. They are not changed: two namespaces must never
// become one.
absl::Status CheckPodText(const laminad::v1::ClaimRequest& request);

// The report as it may be shown: each text escaped and cut (base/printable.h), 64 reasons at most.
laminad::v1::SizingReport PrintableReport(const laminad::v1::SizingReport& report);

// The same for what a shim tells when its VM is ready; 32 phases at most.
laminad::v1::ReadyRequest PrintableReady(const laminad::v1::ReadyRequest& request);

}  // namespace lamina::node
