#pragma once

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <termios.h>

#include <string>

#include "base/unique_fd.h"

namespace lamina::testing {

// A virtio-serial port as the guest's programs see it: while no peer has it open, poll says POLLHUP, and what
// an earlier peer wrote can be read nevertheless. It is a pty, its peers are openings of the slave.
class PtyPort {
 public:
  PtyPort() : port(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    if (!port || grantpt(port.get()) != 0 || unlockpt(port.get()) != 0) abort();
    slave_ = ptsname(port.get());
  }
  UniqueFd OpenPeer() const {
    UniqueFd fd(open(slave_.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    termios mode{};
    if (!fd || tcgetattr(fd.get(), &mode) != 0) abort();
    cfmakeraw(&mode);
    if (tcsetattr(fd.get(), TCSANOW, &mode) != 0) abort();
    return fd;
  }
  // What poll says of `fd` once it says anything; 0 after 10 s.
  static short Events(int fd) {
    pollfd entry{fd, POLLIN, 0};
    return poll(&entry, 1, 10'000) == 1 ? entry.revents : static_cast<short>(0);
  }

  UniqueFd port;

 private:
  std::string slave_;
};

}  // namespace lamina::testing
