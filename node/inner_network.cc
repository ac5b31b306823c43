#include "node/inner_network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pplx/threadpool.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <atomic>
#include <boost/system/system_error.hpp>
#include <cerrno>
#include <cstring>
#include <exception>
#include <thread>

#include "base/status.h"
#include "base/ttrpc/thread.h"

namespace lamina::node {
namespace {

constexpr size_t kThreads = 2;
constexpr uint16_t kFirstPort = 9000;

absl::Status RaiseLoopback() {
  const UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) return ErrnoStatus(errno, "a socket in it");
  ifreq request{};
  strcpy(request.ifr_name, "lo");
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  if (ioctl(fd.get(), SIOCSIFFLAGS, &request) != 0) return ErrnoStatus(errno, "raise its loopback");
  return absl::OkStatus();
}

// Puts the calling thread into a new namespace. On error the thread may stand in one that is of no use.
absl::StatusOr<UniqueFd> NewNamespace() {
  if (unshare(CLONE_NEWNET) != 0) return ErrnoStatus(errno, "unshare");
  RETURN_IF_ERROR(RaiseLoopback());
  UniqueFd made(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!made) return ErrnoStatus(errno, "open /proc/thread-self/ns/net");
  return made;
}

// They are children of the calling thread, and inherit its namespace.
absl::Status StartThreads() {
  try {
    crossplat::threadpool::initialize_with_threads(kThreads);
  } catch (const boost::system::system_error& error) {
    return absl::ResourceExhaustedError(std::string("cpprestsdk's threads cannot be made: ") + error.what());
  } catch (const std::exception& error) {
    return absl::InternalError(std::string("cpprestsdk's threads: ") + error.what());
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status InnerNetwork::Make() {
  absl::Status status;
  ASSIGN_OR_RETURN(std::thread thread, ttrpc::NewThread([&] {
                     absl::StatusOr<UniqueFd> made = NewNamespace();
                     if (made.ok()) {
                       namespace_ = std::move(*made);
                       status = StartThreads();
                     } else {
                       why_open_ = Message(made.status());
                     }
                   }));
  thread.join();
  return namespace_ ? status : StartThreads();
}

absl::StatusOr<const InnerNetwork*> InnerNetwork::Get() {
  // Never destroyed, as cpprestsdk's threads never end.
  static const auto* const made = [] {
    auto* network = new InnerNetwork;
    const absl::Status status = network->Make();
    return new absl::StatusOr<const InnerNetwork*>(status.ok() ? absl::StatusOr<const InnerNetwork*>(network)
                                                               : status);
  }();
  return *made;
}

absl::Status InnerNetwork::Enter() const {
  if (!namespace_ || setns(namespace_.get(), CLONE_NEWNET) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, "enter the network namespace of REST's inner listener");
}

absl::StatusOr<uint16_t> InnerNetwork::FreePort() const {
  static std::atomic<uint16_t> next{kFirstPort};
  if (namespace_) return next++;
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (!fd || bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return ErrnoStatus(errno, "find a free port of the loopback");
  }
  return ntohs(address.sin_port);
}

}  // namespace lamina::node
