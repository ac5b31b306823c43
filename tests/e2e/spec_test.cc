// What a pod's author writes is what the container gets: identity, rights, limits, paths.
#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kMiB = 1 << 20;

class SpecTest : public SharedPodTest {
 protected:
  // Runs `script` in a container made from `spec` and gives its standard output.
  std::string Output(ContainerSpec spec, const std::string& script) {
    spec.name = "spec";
    spec.command = {"sh", "-c", script};
    auto finished = RunToEnd(std::move(spec));
    EXPECT_OK(finished.status());
    if (!finished.ok()) return "";
    EXPECT_EQ(finished->info.exit_code, 0) << finished->out << finished->err;
    return finished->out;
  }
};

TEST_F(SpecTest, UserAndGroups) {
  EXPECT_EQ(Output({}, "/probe ids"), "uid=0 euid=0 gid=0 egid=0 groups=0\n");
  ContainerSpec spec;
  spec.user = 1000;
  EXPECT_THAT(Output(spec, "/probe ids"), HasSubstr("uid=1000 euid=1000 gid=1000 egid=1000"));
  spec.group = 500;
  spec.supplemental_groups = {600, 601};
  const std::string ids = Output(spec, "/probe ids");
  EXPECT_THAT(ids, HasSubstr("uid=1000 euid=1000 gid=500 egid=500"));
  for (const char* group : {"600", "601"}) EXPECT_THAT(ids.substr(ids.find("groups=")), HasSubstr(group));
}

TEST_F(SpecTest, EnvironmentAndWorkingFolder) {
  ContainerSpec spec;
  spec.env = {{"PLAIN", "value"}, {"EMPTY", ""}, {"ODD", "a b\"c'd$e\nf"}, {"FROM_IMAGE", "overridden"}};
  spec.working_dir = "/var";
  EXPECT_EQ(
      Output(spec, "printf '%s|' \"$PLAIN\" \"$EMPTY\" \"$ODD\" \"$FROM_IMAGE\" \"$(pwd)\" \"$(hostname)\""),
      "value||a b\"c'd$e\nf|overridden|/var|shared|");
  EXPECT_EQ(Output({}, "echo $FROM_IMAGE $PATH"), "yes /bin\n");
}

TEST_F(SpecTest, Capabilities) {
  const std::string show = "grep CapEff /proc/self/status | awk '{print $2}'";
  EXPECT_EQ(Output({}, show), "00000000a80425fb\n") << "containerd's default set";
  ContainerSpec spec;
  spec.drop_capabilities = {"ALL"};
  EXPECT_EQ(Output(spec, show), "0000000000000000\n");
  spec.add_capabilities = {"NET_ADMIN", "SYS_TIME"};
  EXPECT_EQ(Output(spec, show), "0000000002001000\n");
  spec = {};
  spec.user = 1000;
  EXPECT_EQ(Output(spec, show), "0000000000000000\n");
}

TEST_F(SpecTest, SeccompFilters) {
  // The default profile refuses keyctl even to those with every right; unconfined lets it through.
  EXPECT_EQ(Output({}, "/probe try keyctl"), "keyctl EPERM\n");
  EXPECT_EQ(Output({}, "grep Seccomp: /proc/self/status | awk '{print $2}'"), "2\n");
  ContainerSpec spec;
  spec.seccomp = Seccomp::kUnconfined;
  EXPECT_EQ(Output(spec, "/probe try keyctl"), "keyctl ok\n");
  EXPECT_EQ(Output(spec, "grep Seccomp: /proc/self/status | awk '{print $2}'"), "0\n");
}

TEST_F(SpecTest, UnprivilegedContainersMayNot) {
  EXPECT_EQ(Output({}, "/probe try mount reboot unshare"), "mount EPERM\nreboot EPERM\nunshare EPERM\n");
  ContainerSpec spec;
  spec.user = 1000;
  EXPECT_EQ(Output(spec, "/probe try mknod chroot"), "mknod EPERM\nchroot EPERM\n");
}

TEST_F(SpecTest, NoNewPrivileges) {
  ContainerSpec spec;
  spec.no_new_privileges = true;
  EXPECT_EQ(Output(spec, "grep NoNewPrivs /proc/self/status | awk '{print $2}'"), "1\n");
  EXPECT_EQ(Output({}, "grep NoNewPrivs /proc/self/status | awk '{print $2}'"), "0\n");
}

TEST_F(SpecTest, ReadOnlyRoot) {
  ContainerSpec spec;
  spec.readonly_root = true;
  EXPECT_EQ(Output(spec, "/probe write /srv/x 1; /probe write /dev/shm/x 1; true"), "EROFS\nok\n");
  EXPECT_EQ(Output({}, "/probe write /srv/x 1"), "ok\n");
}

TEST_F(SpecTest, MaskedAndReadOnlyPaths) {
  ContainerSpec spec;
  spec.extra_masked_paths = {"/srv/hello", "/home"};
  spec.extra_readonly_paths = {"/var"};
  EXPECT_EQ(Output(spec,
                   "cat /srv/hello /proc/kcore | wc -c; ls /home | wc -l; /probe write /var/x 1; "
                   "/probe write /proc/sys/vm/swappiness 1; ls /sys/firmware | wc -l; true"),
            "0\n0\nEROFS\nEROFS\n0\n");
}

TEST_F(SpecTest, CgroupLimits) {
  ContainerSpec spec;
  spec.resources.memory = 48 * kMiB;
  spec.resources.cpu_quota = 25'000;
  spec.resources.cpu_shares = 256;
  const std::string out = Output(spec,
                                 "cd /sys/fs/cgroup; if [ -e memory.max ]; then cat memory.max cpu.max; else "
                                 "cat memory/memory.limit_in_bytes; "
                                 "echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us); fi");
  EXPECT_EQ(out, fmt::format("{}\n25000 100000\n", 48 * kMiB));
}

TEST_F(SpecTest, DevicesAndFileSystemsOfAContainer) {
  EXPECT_EQ(
      Output(
          {},
          "for d in null zero full random urandom tty ptmx; do test -c /dev/$d || test -L /dev/$d || echo no "
          "$d; done; "
          "for d in fd stdin stdout stderr; do test -L /dev/$d || echo no $d; done; "
          "awk '$2==\"/proc\"||$2==\"/dev/pts\"||$2==\"/dev/mqueue\"||$2==\"/sys\"||$2==\"/dev/shm\"{print "
          "$3}' "
          "/proc/mounts | sort | tr '\\n' ' '; echo x >/dev/null; ls /dev | grep -cE "
          "'^(sd|vd|pmem|dm-|vport|hvc)'; true"),
      "devpts mqueue proc sysfs tmpfs 0\n");
}

TEST_F(SpecTest, TheHostIsOutOfSight) {
  LAMINA_ONLY();
  // The kernel is the guest's; nothing in /proc names the host's folders.
  EXPECT_NE(Trim(Output({}, "uname -r")), [] {
    FILE* pipe = popen("uname -r", "r");
    char line[200] = "";
    if (fgets(line, sizeof line, pipe) == nullptr) line[0] = '\0';
    pclose(pipe);
    return Trim(line);
  }());
  EXPECT_THAT(Output({}, "cat /proc/mounts /proc/cmdline"), Not(HasSubstr(TestNode().dir())));
}

TEST_F(SpecTest, APrivilegedContainerIsPrivilegedInItsVmOnly) {
  LAMINA_ONLY();
  PodSpec pod_spec;
  pod_spec.name = "privileged";
  pod_spec.privileged = true;
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(pod_spec));
  ContainerSpec spec = Sleeper();
  spec.privileged = true;
  spec.seccomp = Seccomp::kUnconfined;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), spec));
  ASSERT_OK_AND_ASSIGN(const std::string out,
                       ShellIn(id, "grep CapEff /proc/self/status | awk '{print $2}'; /probe try mount"));
  // containerd gives what it has itself.
  const std::string own = ReadText("/proc/self/status");
  EXPECT_EQ(out, own.substr(own.find("CapBnd:") + 8, 16) + "\nmount ok\n");
}

}  // namespace
}  // namespace lamina::e2e
