// A log line for the shim and the agent, which cannot carry spdlog: "time level message", to one descriptor.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <string_view>
#include <utility>

namespace lamina {

inline constexpr size_t kMaxLogBytes = 8192;  // of one message

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Where lines go (default 2) and which are dropped (below `minimum`). Set before threads start.
void SetLogTarget(int fd, LogLevel minimum);

// Writes one line with one write(2), the message escaped and cut (base/printable.h): it may have a guest's or
// an image's words in it; never throws, never blocks on a full pipe longer than the kernel does.
void WriteLog(LogLevel level, std::string_view message);

template <typename... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  WriteLog(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  WriteLog(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  WriteLog(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  WriteLog(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace lamina
