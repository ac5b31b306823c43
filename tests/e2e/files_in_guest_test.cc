// The small volumes that the kubelet writes and changes: ConfigMaps, Secrets, hosts, termination logs.
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;

void Put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::trunc) << text; }

class FilesInGuestTest : public SharedPodTest {
 protected:
  void SetUp() override {
    SharedPodTest::SetUp();
    kubelet_ = TestNode().volumes_dir() + "/pods/1f2e3d4c-0000-4000-8000-000000000001";
  }
  void TearDown() override {
    for (const std::string& id : started_) {
      EXPECT_OK(Cri().StopContainer(id, 0));
      EXPECT_OK(Cri().RemoveContainer(id));
    }
  }
  // A volume of the kubelet's: "configmap", "secret", "projected", "downward-api".
  std::string Volume(const std::string& kind, const std::string& name) const {
    const std::string path = kubelet_ + "/volumes/kubernetes.io~" + kind + "/" + name;
    fs::create_directories(path);
    return path;
  }
  // The keys of a volume, in the steps of the kubelet's atomic writer.
  void Publish(const std::string& dir, const std::map<std::string, std::string>& keys, mode_t mode = 0644,
               gid_t group = 0) {
    const std::string version = "..2026_11_26_17_00_00." + std::to_string(++versions_);
    std::error_code none;
    const fs::path old = fs::read_symlink(dir + "/..data", none);
    fs::create_directories(dir + "/" + version);
    for (const auto& [key, content] : keys) {
      const std::string path = dir + "/" + version + "/" + key;
      Put(path, content);
      ASSERT_EQ(chown(path.c_str(), 0, group), 0);
      ASSERT_EQ(chmod(path.c_str(), mode), 0);
    }
    fs::create_symlink(version, dir + "/..data_tmp");
    fs::rename(dir + "/..data_tmp", dir + "/..data");
    for (const auto& [key, content] : keys) {
      if (!fs::is_symlink(dir + "/" + key)) fs::create_symlink("..data/" + key, dir + "/" + key);
    }
    for (const auto& entry : fs::directory_iterator(dir)) {
      const std::string name = entry.path().filename();
      if (name.rfind("..", 0) != 0 && keys.count(name) == 0) fs::remove(entry.path());
    }
    if (!old.empty()) fs::remove_all(dir / old);
  }
  std::string Adopt(const ContainerSpec& spec) {
    auto id = Cri().RunContainer(pod(), spec);
    EXPECT_OK(id.status());
    if (id.ok()) started_.push_back(*id);
    return id.value_or("");
  }
  std::string Start(const std::vector<MountSpec>& mounts) {
    ContainerSpec spec = Sleeper("files-" + std::to_string(started_.size()));
    spec.mounts = mounts;
    return Adopt(spec);
  }
  std::string In_(const std::string& id, const std::string& command) {
    auto out = ShellIn(id, command);
    EXPECT_OK(out.status());
    return out.value_or("");
  }
  absl::Status Soon(const std::string& id, const std::string& command, const std::string& expected) {
    return Eventually(In(seconds(10)), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string out, ShellIn(id, command));
      return out == expected ? absl::OkStatus() : absl::InternalError("have \"" + out + "\"");
    });
  }
  absl::Status Said(const std::string& id, const std::string& line) {
    return Eventually(In(seconds(20)), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string log, Cri().LogText(id));
      return ("\n" + log).find("\n" + line + "\n") != std::string::npos ? absl::OkStatus()
                                                                        : absl::InternalError(log);
    });
  }
  // The file system that the container has at `path`.
  std::string TypeOf(const std::string& id, const std::string& path) {
    return Trim(In_(id, "awk '$2 == \"" + path + "\" {print $3}' /proc/self/mounts"));
  }

  std::string kubelet_;

 private:
  std::vector<std::string> started_;
  int versions_ = 0;
};

TEST_F(FilesInGuestTest, AWatcherOfAConfigMapHearsItsSwap) {
  const std::string dir = Volume("configmap", "watched");
  Publish(dir, {{"key", "1"}});
  ContainerSpec spec = Sleeper("watcher");
  spec.command = {"/probe", "watch", "/config"};
  spec.args = {};
  spec.mounts = {{"/config", dir, true}};
  const std::string id = Adopt(spec);
  ASSERT_OK(Said(id, "watching"));
  const auto start = steady_clock::now();
  Publish(dir, {{"key", "2"}});
  EXPECT_OK(Said(id, "to ..data"));
  const auto took = std::chrono::duration_cast<milliseconds>(steady_clock::now() - start);
  RecordProperty("milliseconds_to_event", std::to_string(took.count()));
  EXPECT_OK(Said(id, "create ..data_tmp"));
  EXPECT_EQ(In_(id, "cat /config/key"), "2");
  if (IsLamina()) {
    EXPECT_EQ(TypeOf(id, "/config"), "tmpfs");
  }
}

TEST_F(FilesInGuestTest, ASwapArrivesInEveryContainerWithKeysThatComeAndGo) {
  const std::string dir = Volume("projected", "swapped");
  Publish(dir, {{"gone", "1"}, {"key", "1"}}, 0440, 3000);
  const std::string one = Start({{"/config", dir, true}}), two = Start({{"/etc/other", dir, true}});
  EXPECT_EQ(In_(one, "cat /config/key /config/gone; stat -L -c '%a %u %g' /config/key"), "11440 0 3000\n");
  for (const std::string version : {"2", "3"}) {
    Publish(dir, {{"key", version}, {"new" + version, version}}, 0400, 0);
    for (const auto& [id, at] : {std::pair{one, "/config"}, {two, "/etc/other"}}) {
      EXPECT_OK(Soon(id, fmt::format("cd {}; cat key; ls; stat -L -c %a key", at),
                     version + "key\nnew" + version + "\n400\n"));
    }
  }
  // One that comes later, and one mount more of the same volume, have what is there now.
  EXPECT_EQ(In_(Start({{"/a", dir, true}, {"/b", dir, true}}), "cat /a/key /b/key"), "33");
}

TEST_F(FilesInGuestTest, ASecretIsReadOnlyAndOfItsGroup) {
  const std::string dir = Volume("secret", "token");
  Publish(dir, {{"password", "hidden"}}, 0440, 3000);
  ASSERT_EQ(chown(dir.c_str(), 0, 3000), 0);
  ASSERT_EQ(chmod(dir.c_str(), 03777), 0);
  ContainerSpec spec = Sleeper("member");
  spec.mounts = {{"/secret", dir, true}};
  spec.user = spec.group = 1000;
  spec.supplemental_groups = {3000};
  const std::string member = Adopt(spec);
  EXPECT_EQ(In_(member, "cat /secret/password; stat -c ' %a %g' /secret"), "hidden 3777 3000\n");
  EXPECT_EQ(In_(member, "/probe write /secret/new x; true"), "EROFS\n");
  spec.name = "stranger";
  spec.supplemental_groups = {3001};
  EXPECT_EQ(In_(Adopt(spec), "cat /secret/password 2>/dev/null || echo refused"), "refused\n");
  EXPECT_EQ(
      In_(Start({{"/secret", dir, true}}), "/probe write /secret/password x; cat /secret/password; true"),
      "EROFS\nhidden");
  EXPECT_EQ(ReadText(dir + "/password"), "hidden");
}

// The kubelet binds the file that the key is at the container's start: it stays that one.
TEST_F(FilesInGuestTest, ASubPathOfAConfigMapIsTheFileOfItsStart) {
  const std::string dir = Volume("configmap", "parts");
  Publish(dir, {{"app.conf", "first"}});
  const std::string sub = kubelet_ + "/volume-subpaths/parts/main";
  fs::create_directories(sub);
  Put(sub + "/0", "");
  ASSERT_EQ(system(fmt::format("mount --bind {}/..data/app.conf {}/0", dir, sub).c_str()), 0);
  const std::string id = Start({{"/etc/app.conf", sub + "/0", true}, {"/all", dir, true}});
  EXPECT_EQ(In_(id, "cat /etc/app.conf; /probe write /etc/app.conf x; true"), "firstEROFS\n");
  if (IsLamina()) {
    EXPECT_EQ(TypeOf(id, "/etc/app.conf"), "tmpfs");
  }
  Publish(dir, {{"app.conf", "second"}});
  EXPECT_OK(Soon(id, "cat /all/app.conf", "second"));
  EXPECT_EQ(In_(id, "cat /etc/app.conf"), "first");
  EXPECT_OK(Cri().StopContainer(id, 0));
  EXPECT_EQ(system(fmt::format("umount {}/0", sub).c_str()), 0);
}

TEST_F(FilesInGuestTest, HostsThatAreRewrittenAreSeen) {
  const std::string hosts = kubelet_ + "/etc-hosts";
  fs::create_directories(kubelet_);
  Put(hosts, "127.0.0.1 localhost\n");
  const std::string one = Start({{"/etc/hosts", hosts}}), two = Start({{"/etc/hosts", hosts}});
  EXPECT_EQ(In_(one, "cat /etc/hosts"), "127.0.0.1 localhost\n");
  // One file for all containers of the pod.
  In_(one, "echo 10.0.0.1 mine >>/etc/hosts");
  EXPECT_EQ(In_(two, "cat /etc/hosts"), "127.0.0.1 localhost\n10.0.0.1 mine\n");
  // The kubelet writes it anew, in place, with each container that it starts.
  Put(hosts, "127.0.0.1 localhost\n10.0.0.2 alias\n");
  for (const std::string& id : {one, two})
    EXPECT_OK(Soon(id, "cat /etc/hosts", "127.0.0.1 localhost\n10.0.0.2 alias\n"));
  EXPECT_THAT(In_(one, "ping -c 1 -W 1 alias 2>&1 || true"), HasSubstr("10.0.0.2"));
  if (IsLamina()) {
    EXPECT_EQ(TypeOf(one, "/etc/hosts"), "tmpfs");
    EXPECT_EQ(TypeOf(one, "/etc/resolv.conf"), "tmpfs");
  }
}

TEST_F(FilesInGuestTest, ATerminationLogIsThereWhenTheEndIsTold) {
  fs::create_directories(kubelet_ + "/containers/ends");
  const auto end = [&](const std::string& name, const std::string& script) {
    const std::string log = kubelet_ + "/containers/ends/" + name;
    Put(log, "");
    fs::permissions(log, fs::perms(0666));
    ContainerSpec spec = ShellContainer(name, script);
    spec.mounts = {{"/dev/termination-log", log}};
    spec.user = 1000;
    const auto finished = RunToEnd(spec);
    EXPECT_OK(finished.status());
    return ReadText(log);
  };
  EXPECT_EQ(end("a1b2c3d4", "echo -n because >/dev/termination-log; exit 3"), "because");
  EXPECT_EQ(end("b2c3d4e5", "true"), "");
  const std::string much =
      end("c3d4e5f6",
          "head -c 200000 /dev/zero | tr '\\0' x >/dev/termination-log; echo -n end >>/dev/termination-log");
  EXPECT_EQ(much.substr(much.size() - std::min<size_t>(much.size(), 4)), "xend");
  if (IsLamina()) {
    EXPECT_EQ(much.size(), size_t{64} * 1024);
  }
}

TEST_F(FilesInGuestTest, WhatIsTooLargeToBeKeptWorksAllTheSame) {
  const std::string dir = Volume("configmap", "large");
  Publish(dir, {{"a", std::string(size_t{9} << 20, 'a')}, {"b", "b"}});
  const std::string id = Start({{"/config", dir, true}});
  EXPECT_EQ(In_(id, "wc -c </config/a; cat /config/b; /probe write /config/c x; true"), "9437184\nbEROFS\n");
  if (IsLamina()) {
    EXPECT_EQ(TypeOf(id, "/config"), "virtiofs");
  }
  Publish(dir, {{"a", "small"}, {"b", "c"}});
  EXPECT_OK(Soon(id, "cat /config/b", "c"));
}

}  // namespace
}  // namespace lamina::e2e
