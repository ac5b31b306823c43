#include "base/ttrpc/thread.h"

#include <pthread.h>

#include <memory>
#include <system_error>
#include <utility>

#include "base/status.h"

namespace lamina::ttrpc {
namespace {

void* Run(void* argument) {
  const std::unique_ptr<std::function<void()>> body(static_cast<std::function<void()>*>(argument));
  (*body)();
  return nullptr;
}

absl::Status NoThread(int error) {
  return MakeStatus(absl::StatusCode::kResourceExhausted, "start a thread: {}",
                    std::generic_category().message(error));
}

}  // namespace

absl::Status StartThread(size_t stack_bytes, std::function<void()> body) {
  auto argument = std::make_unique<std::function<void()>>(std::move(body));
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, stack_bytes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  const int error = pthread_create(&thread, &attributes, Run, argument.get());
  pthread_attr_destroy(&attributes);
  if (error != 0) return NoThread(error);
  static_cast<void>(argument.release());
  return absl::OkStatus();
}

absl::StatusOr<std::thread> NewThread(std::function<void()> body) {
  try {
    return std::thread(std::move(body));
  } catch (const std::system_error& error) {
    return NoThread(error.code().value());
  }
}

}  // namespace lamina::ttrpc
