#include "base/unix_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina {
namespace {

using testing::HasStatus;

class UnixSocket : public ::testing::Test {
 protected:
  testing::TempDir dir_;
  const std::string path_ = dir_ / "x.sock";
};

TEST_F(UnixSocket, OnlyItsOwnerMayConnect) {
  const mode_t old = umask(0);
  const absl::StatusOr<UniqueFd> listener = ListenUnix(path_);
  umask(old);
  ASSERT_OK(listener);
  struct stat info {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode, S_IFSOCK | 0600U);
  EXPECT_EQ(fcntl(listener->get(), F_GETFD), FD_CLOEXEC);
}

TEST_F(UnixSocket, ConnectsAndCarriesBytes) {
  const absl::StatusOr<UniqueFd> listener = ListenUnix(path_);
  ASSERT_OK(listener);
  const absl::StatusOr<UniqueFd> client = ConnectUnix(path_);
  ASSERT_OK(client);
  EXPECT_EQ(fcntl(client->get(), F_GETFD), FD_CLOEXEC);
  const UniqueFd server(accept(listener->get(), nullptr, nullptr));
  ASSERT_EQ(write(client->get(), "x", 1), 1);
  char byte = 0;
  ASSERT_EQ(read(server.get(), &byte, 1), 1);
  EXPECT_EQ(byte, 'x');
}

TEST_F(UnixSocket, ASocketLeftBehindIsReplacedAndAFileIsNot) {
  ASSERT_OK(ListenUnix(path_));  // closed at once: nobody listens there any more
  EXPECT_FALSE(SomebodyListens(path_));
  EXPECT_THAT(ConnectUnix(path_), HasStatus(absl::StatusCode::kUnavailable, path_));
  const absl::StatusOr<UniqueFd> listener = ListenUnix(path_);
  ASSERT_OK(listener);
  EXPECT_TRUE(SomebodyListens(path_));

  const std::string file = dir_ / "file";
  std::ofstream(file) << "precious";
  EXPECT_THAT(ListenUnix(file), HasStatus(absl::StatusCode::kAlreadyExists, file));
  EXPECT_EQ(access(file.c_str(), F_OK), 0);
}

TEST_F(UnixSocket, AListenerThatAcceptsNobodyHoldsNobody) {
  const absl::StatusOr<UniqueFd> listener = ListenUnix(path_, 1);
  ASSERT_OK(listener);
  std::vector<UniqueFd> waiting;
  absl::StatusOr<UniqueFd> next = ConnectUnix(path_, std::chrono::milliseconds(100));
  for (; next.ok() && waiting.size() < 100; next = ConnectUnix(path_, std::chrono::milliseconds(100)))
    waiting.push_back(std::move(*next));
  EXPECT_THAT(next, HasStatus(absl::StatusCode::kUnavailable, "not accepted within 100 ms"));
  EXPECT_TRUE(SomebodyListens(path_));
}

TEST_F(UnixSocket, ErrorsNameThePath) {
  EXPECT_THAT(ConnectUnix(path_), HasStatus(absl::StatusCode::kNotFound, path_));
  EXPECT_FALSE(SomebodyListens(path_));
  const std::string longest(kMaxSocketPath, 'x');
  EXPECT_OK(CheckSocketPath(longest));
  for (const std::string& bad : {longest + "x", std::string()}) {
    EXPECT_THAT(CheckSocketPath(bad), HasStatus(absl::StatusCode::kInvalidArgument, "1 to 107"));
    EXPECT_THAT(ConnectUnix(bad), HasStatus(absl::StatusCode::kInvalidArgument, bad));
    EXPECT_THAT(ListenUnix(bad), HasStatus(absl::StatusCode::kInvalidArgument, bad));
    EXPECT_FALSE(SomebodyListens(bad));
  }
  EXPECT_THAT(ListenUnix(dir_ / "none/x.sock"), HasStatus(absl::StatusCode::kNotFound, "none/x.sock"));
}

}  // namespace
}  // namespace lamina
