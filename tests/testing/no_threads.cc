#include "tests/testing/no_threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>

namespace {

std::atomic<bool> g_refuse{false};
std::atomic<int> g_refused{0};

}  // namespace

// Stands before the C library's, for the whole program.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                              void* argument) noexcept {
  if (g_refuse) {
    ++g_refused;
    return EAGAIN;
  }
  static const auto real = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return real(thread, attributes, start, argument);
}

namespace lamina::testing {

NoThreads::NoThreads() {
  g_refused = 0;
  g_refuse = true;
}
NoThreads::~NoThreads() { g_refuse = false; }
int NoThreads::refused() const { return g_refused; }

}  // namespace lamina::testing
