// A guest's errors as they may be shown. The guest is not trusted: into an error it can write what it likes,
// and 4 MiB of it; logs, events and containerd's answers take it from there.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "base/ttrpc/method.h"

namespace lamina::guest {

// The same code with at most 512 bytes of the message; all but printable ASCII is escaped (\x0a).
absl::Status GuestError(const absl::Status& status);

// The connection `agent` with errors of that form.
std::unique_ptr<ttrpc::Caller> WithGuestErrors(std::unique_ptr<ttrpc::Caller> agent);

}  // namespace lamina::guest
