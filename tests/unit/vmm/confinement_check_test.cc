#include "vmm/confinement_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "vmm/virtiofsd_confinement.h"

namespace lamina::vmm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr UserRange kUsers{1000, 1999};

ProcessRights Confined() {
  ProcessRights rights;
  rights.users = {1234};
  rights.groups = {1234};
  rights.no_new_privs = rights.filtered = rights.own_root = true;
  rights.namespaces = {"ipc", "mnt", "net", "pid", "uts"};
  rights.root = {"lib64", "proc", "usr"};
  rights.environment = {"PATH=/usr/bin"};
  return rights;
}

TEST(QemuExcess, AConfinedOneHasNothing) {
  EXPECT_THAT(QemuExcess(Confined(), kUsers), IsEmpty());
  ProcessRights more = Confined();
  more.namespaces.insert("cgroup");
  EXPECT_THAT(QemuExcess(more, kUsers), IsEmpty());
}

TEST(QemuExcess, EachThingThatItHasIsNamed) {
  struct Case {
    std::function<void(ProcessRights&)> change;
    const char* named;
  };
  const Case cases[] = {
      {[](ProcessRights& r) { r.users = {0}; }, "the user 0, none of hypervisor.users"},
      {[](ProcessRights& r) { r.users = {2000}; }, "the user 2000"},
      {[](ProcessRights& r) {
         r.users = {0, 1234};
       },
       "the user 0, 1234"},
      {[](ProcessRights& r) { r.groups.insert(6); }, "the groups 6, 1234"},
      {[](ProcessRights& r) { r.capabilities = 0x200000; }, "capabilities 0x200000"},
      {[](ProcessRights& r) { r.bounding = 1; }, "capabilities 0x1"},
      {[](ProcessRights& r) { r.no_new_privs = false; }, "no_new_privs"},
      {[](ProcessRights& r) { r.filtered = false; }, "seccomp"},
      {[](ProcessRights& r) { r.core_bytes = UINT64_MAX; }, "core file"},
      {[](ProcessRights& r) {
         r.namespaces = {"ipc", "mnt", "uts"};
       },
       "namespaces net, pid"},
      {[](ProcessRights& r) { r.own_root = false; }, "the node's root directory"},
      {[](ProcessRights& r) {
         r.root = {"etc", "proc", "sys"};
       },
       "/etc, /sys in its root directory"},
      {[](ProcessRights& r) { r.environment.emplace_back("TOKEN=secret"); }, "the environment's TOKEN"},
  };
  for (const Case& one : cases) {
    ProcessRights rights = Confined();
    one.change(rights);
    EXPECT_THAT(QemuExcess(rights, kUsers), ElementsAre(HasSubstr(one.named)));
  }
}

TEST(VirtiofsdExcess, RootWithWhatFilesNeedAndNoMore) {
  ProcessRights rights = Confined();
  rights.users = rights.groups = {0};
  rights.capabilities = kVirtiofsdCapabilities;
  rights.root = {"0123-0"};
  EXPECT_THAT(VirtiofsdExcess(rights), IsEmpty());
  rights.capabilities |= 1ULL << 27;  // MKNOD
  EXPECT_THAT(VirtiofsdExcess(rights), ElementsAre(HasSubstr("capabilities 0x8000000")));
  rights.capabilities = 0;
  rights.bounding = 1;
  EXPECT_THAT(VirtiofsdExcess(rights), ElementsAre(HasSubstr("capabilities 0x1")));
  rights.bounding = 0;
  rights.groups = {0, 6};
  EXPECT_THAT(VirtiofsdExcess(rights), ElementsAre(HasSubstr("the groups 0, 6")));
  rights.groups = {0};
  rights.own_root = false;
  EXPECT_THAT(VirtiofsdExcess(rights), ElementsAre(HasSubstr("the node's root directory")));
}

}  // namespace
}  // namespace lamina::vmm
