#include "node/claim_text.h"

#include <string>
#include <utility>

#include "base/printable.h"
#include "base/status.h"

namespace lamina::node {
namespace {

constexpr size_t kShownBytes = 64;  // of one that is refused
constexpr size_t kMaxNumberBytes = 64;
constexpr size_t kMaxReasonBytes = 1024;
constexpr size_t kMaxPathBytes = 4096;
constexpr int kMaxReasons = 64;
constexpr size_t kMaxPhases = 32;

}  // namespace

absl::Status CheckPodText(const laminad::v1::ClaimRequest& request) {
  for (const auto& [field, text] :
       {std::pair<const char*, const std::string&>{"namespace", request.pod_namespace()},
        {"name", request.pod_name()},
        {"uid", request.pod_uid()}}) {
    if (Printable(text, kMaxNameBytes) == text) continue;
    return InvalidArgument(
        "claim {}: the pod's {} \"{}\" ({} bytes) is not printable ASCII of at most {} bytes",
        request.sandbox_id(), field, Printable(text, kShownBytes), text.size(), kMaxNameBytes);
  }
  return absl::OkStatus();
}

laminad::v1::SizingReport PrintableReport(const laminad::v1::SizingReport& report) {
  laminad::v1::SizingReport out = report;
  out.set_vcpus_exact(Printable(report.vcpus_exact(), kMaxNumberBytes));
  out.clear_reasons();
  for (const std::string& reason : report.reasons()) {
    if (out.reasons_size() == kMaxReasons) break;
    out.add_reasons(Printable(reason, kMaxReasonBytes));
  }
  return out;
}

laminad::v1::ReadyRequest PrintableReady(const laminad::v1::ReadyRequest& request) {
  laminad::v1::ReadyRequest out = request;
  out.set_state_path(Printable(request.state_path(), kMaxPathBytes));
  out.clear_phase_seconds();
  for (const auto& [phase, seconds] : request.phase_seconds()) {
    if (out.phase_seconds().size() == kMaxPhases) break;
    (*out.mutable_phase_seconds())[Printable(phase, kShownBytes)] = seconds;
  }
  return out;
}

}  // namespace lamina::node
