#include "base/log.h"

#include <unistd.h>

#include <ctime>
#include <string>

#include "base/printable.h"

namespace lamina {
namespace {

int g_fd = 2;
LogLevel g_minimum = LogLevel::kInfo;

constexpr const char* kNames[] = {"debug", "info", "warning", "error"};

}  // namespace

void SetLogTarget(int fd, LogLevel minimum) {
  g_fd = fd;
  g_minimum = minimum;
}

void WriteLog(LogLevel level, std::string_view message) {
  if (level < g_minimum) return;
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc{};
  gmtime_r(&now.tv_sec, &utc);
  // One line, whatever others' words are in it.
  const std::string line =
      fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z {} {}\n", utc.tm_year + 1900, utc.tm_mon + 1,
                  utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, now.tv_nsec / 1000,
                  kNames[static_cast<int>(level)], Printable(message, kMaxLogBytes));
  [[maybe_unused]] const ssize_t written = write(g_fd, line.data(), line.size());
}

}  // namespace lamina
