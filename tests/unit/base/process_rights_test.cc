#include "base/process_rights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/testing/status_matchers.h"

namespace lamina {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(ProcessRights, OneThatIsComparedWithItselfSharesAll) {
  const auto rights = ReadProcessRights(getpid(), getpid());
  ASSERT_OK(rights);
  EXPECT_THAT(rights->users, Contains(geteuid()));
  EXPECT_THAT(rights->groups, Contains(getegid()));
  EXPECT_THAT(rights->namespaces, IsEmpty());
  EXPECT_FALSE(rights->own_root);
  EXPECT_THAT(rights->root, Contains("proc"));
  rlimit core{};
  ASSERT_EQ(getrlimit(RLIMIT_CORE, &core), 0);
  EXPECT_EQ(rights->core_bytes, core.rlim_max);
  EXPECT_EQ(rights->no_new_privs, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
}

TEST(ProcessRights, WhatAChildGaveUpIsSeen) {
  int ready[2], end[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(end), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    close(end[1]);
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (getuid() == 0 && (setgid(65534) != 0 || setuid(65533) != 0)) _exit(1);
    char byte = 'x';
    if (write(ready[1], &byte, 1) != 1) _exit(1);
    _exit(read(end[0], &byte, 1) == 0 ? 0 : 1);
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  const auto rights = ReadProcessRights(child, getpid());
  close(end[1]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ASSERT_OK(rights);
  EXPECT_TRUE(rights->no_new_privs);
  EXPECT_EQ(rights->core_bytes, 0U);
  EXPECT_FALSE(rights->own_root);
  if (getuid() == 0) {
    EXPECT_THAT(rights->users, ElementsAre(65533));
    EXPECT_EQ(rights->capabilities, 0U);
    EXPECT_THAT(rights->groups, Contains(65534));
  }
  for (const int fd : {ready[0], ready[1], end[0]}) close(fd);
  EXPECT_THAT(ReadProcessRights(child, getpid()), testing::HasStatus(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace lamina
