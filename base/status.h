// Errors are absl::Status with a sentence that an operator can act on: what was tried, on what, what
// happened.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina {

// The status that an errno stands for, with `what` ("open /x") before the system's text.
// ENOENT -> NotFound, EEXIST -> AlreadyExists, EACCES/EPERM -> PermissionDenied,
// ENOSPC/EDQUOT/ENOMEM/EMFILE/ENFILE -> ResourceExhausted, EINVAL -> InvalidArgument, ETIMEDOUT ->
// DeadlineExceeded, ECONNREFUSED/ECONNRESET/EPIPE/EAGAIN -> Unavailable, ECANCELED -> Cancelled, others ->
// Internal.
absl::Status ErrnoStatus(int error, std::string_view what);

// The same code with "context: " before the message; OK stays OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

template <typename... Args>
absl::Status MakeStatus(absl::StatusCode code, fmt::format_string<Args...> format, Args&&... args) {
  return absl::Status(code, fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
absl::Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kInvalidArgument, format, std::forward<Args>(args)...);
}

// The message of a status as a std::string (absl::string_view is not std::string_view on Debian 12).
inline std::string Message(const absl::Status& status) { return std::string(status.message()); }

}  // namespace lamina

#define LAMINA_CONCAT_INNER(a, b) a##b
#define LAMINA_CONCAT(a, b) LAMINA_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status _status = (expr); !_status.ok()) return _status; \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()): declares or assigns x, or returns F's error.
#define ASSIGN_OR_RETURN(lhs, expr) ASSIGN_OR_RETURN_INNER(LAMINA_CONCAT(_status_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_INNER(tmp, lhs, expr) \
  auto tmp = (expr);                           \
  if (!tmp.ok()) return tmp.status();          \
  lhs = std::move(tmp).value()
