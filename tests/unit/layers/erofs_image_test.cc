// mkfs.erofs in its confinement: the same images, and nothing for who has taken it over.
#include "layers/erofs_image.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/subprocess.h"
#include "base/units.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::layers {
namespace {

using absl::StatusCode;
using std::chrono::seconds;
using testing::HasStatus;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::TempDir;

class ErofsMakerTest : public ::testing::Test {
 protected:
  ErofsMakerTest() { std::filesystem::create_directories(layer_); }

  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(layer_ + "/" + name) << content;
  }
  static std::string Bytes(const std::string& path) {
    std::ostringstream all;
    all << std::ifstream(path).rdbuf();
    return all.str();
  }
  void Attribute(const std::string& name, const char* attribute, const std::string& value) const {
    EXPECT_EQ(lsetxattr((layer_ + "/" + name).c_str(), attribute, value.data(), value.size(), 0), 0)
        << attribute << ": " << strerror(errno);
  }
  // One of everything that a layer can have.
  void MakeEveryKind() const {
    std::filesystem::create_directories(layer_ + "/d/e");
    Write("zero", "");
    Write("small", "small");
    Write("d/large", std::string(3 * kMiB + 17, 'x'));
    Write("sparse", "");
    std::filesystem::resize_file(layer_ + "/sparse", 5 * kMiB);
    for (int i = 0; i < 300; ++i) Write("d/e/" + std::to_string(i), std::string(static_cast<size_t>(i), 'y'));
    std::filesystem::create_hard_link(layer_ + "/small", layer_ + "/hard");
    std::filesystem::create_symlink("/etc/passwd", layer_ + "/link");
    std::filesystem::create_symlink(std::string(4000, 'l'), layer_ + "/long");
    EXPECT_EQ(mkfifo((layer_ + "/fifo").c_str(), 0640), 0);
    EXPECT_EQ(mknod((layer_ + "/whiteout").c_str(), S_IFCHR, makedev(0, 0)), 0);
    EXPECT_EQ(mknod((layer_ + "/disk").c_str(), S_IFBLK | 0600, makedev(7, 0)), 0);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", layer_.c_str());
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    close(fd);
    Attribute("d", "trusted.overlay.opaque", "y");
    Attribute("small", "user.text", std::string(500, 'u'));
    Attribute("zero", "security.capability", std::string("\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20));
    EXPECT_EQ(chown((layer_ + "/zero").c_str(), 70000, 80000), 0);
    for (const char* name : {"small", "d/e/5", "d/e"}) EXPECT_EQ(chmod((layer_ + "/" + name).c_str(), 0), 0);
    EXPECT_EQ(chmod((layer_ + "/d/large").c_str(), 06755), 0);
  }

  const TempDir dir_;
  const std::string layer_ = dir_ / "layer", image_ = dir_ / "image";
};

TEST_F(ErofsMakerTest, TheImageIsThatOfAFreeProgram) {
  MakeEveryKind();
  ErofsMaker maker({});
  ASSERT_OK(maker.confinement());
  const auto made = maker.Make(layer_, image_);
  ASSERT_OK(made);
  const std::string free = dir_ / "free";
  ASSERT_OK(RunChecked(
      {"env", "SOURCE_DATE_EPOCH=253402300799", "mkfs.erofs", "--quiet", "-U",
       "00000000-0000-4000-8000-6c616d696e61", "-E", "force-inode-extended,noinline_data", free, layer_},
      seconds(60)));
  EXPECT_GT(made->bytes, 3 * kMiB);
  EXPECT_TRUE(Bytes(image_) == Bytes(free)) << "they differ";
  EXPECT_THAT(Bytes(image_), HasSubstr("overlay.opaque")) << "trusted attributes are in it";
  struct stat info {};
  ASSERT_EQ(stat(image_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

TEST_F(ErofsMakerTest, WhatIsMountedInALayerIsNotOfIt) {
  std::filesystem::create_directories(layer_ + "/proc");
  Write("proc/here", "here");
  ASSERT_OK(ErofsMaker({}).Make(layer_, image_));
  const std::string before = Bytes(image_);
  ASSERT_OK(RunChecked({"mount", "-t", "tmpfs", "none", layer_ + "/proc"}, seconds(10)));
  Write("proc/secret", "of the node");
  EXPECT_OK(ErofsMaker({}).Make(layer_, image_));
  EXPECT_OK(RunChecked({"umount", layer_ + "/proc"}, seconds(10)));
  EXPECT_TRUE(Bytes(image_) == before);
}

// What a program could do with its two capabilities, and how else one breaks out.
TEST_F(ErofsMakerTest, CallsThatReadNoLayerAreRefused) {
  Write("file", "content");
  std::ofstream(image_) << "";
  ConfinementRules rules = MkfsErofsRules();
  rules.program = LAMINA_CONFINEMENT_PROBE;
  const auto confined = Confinement::Prepare(rules);
  ASSERT_OK(confined);
  ASSERT_OK(confined->shortfall());
  ConfinedRun run;
  run.files = {{layer_, "/layer"}, {image_, "/image", true}};
  const auto attempt = [&](const Confinement& confinement, const std::vector<std::string>& arguments) {
    run.arguments = arguments;
    const auto result = confinement.Run(run);
    if (!result.ok()) return Message(result.status());
    return result->exit_code == 0 ? std::string("succeeded") : result->output;
  };
  EXPECT_EQ(attempt(*confined, {"read", "/layer/file"}), "succeeded");
  EXPECT_EQ(attempt(*confined, {"write", "/layer/file"}), "EROFS\n");
  EXPECT_EQ(attempt(*confined, {"read", "/etc/passwd"}), "ENOENT\n");
  EXPECT_EQ(attempt(*confined, {"connect", "80"}), "EPERM\n");
  EXPECT_EQ(attempt(*confined, {"fork"}), "EPERM\n");
  EXPECT_EQ(attempt(*confined, {"mount", "/layer"}), "EPERM\n");
  EXPECT_EQ(attempt(*confined, {"node", "/image"}), "EPERM\n");
  EXPECT_EQ(attempt(*confined, {"run", "/image"}), "EACCES\n");
  for (const long call : {SYS_mount,        SYS_umount2,         SYS_pivot_root,   SYS_chroot,
                          SYS_fsopen,       SYS_open_tree,       SYS_move_mount,   SYS_mount_setattr,
                          SYS_setns,        SYS_unshare,         SYS_clone,        SYS_clone3,
                          SYS_fork,         SYS_vfork,           SYS_ptrace,       SYS_bpf,
                          SYS_keyctl,       SYS_add_key,         SYS_request_key,  SYS_open_by_handle_at,
                          SYS_ioctl,        SYS_setxattr,        SYS_lsetxattr,    SYS_fsetxattr,
                          SYS_quotactl,     SYS_perf_event_open, SYS_seccomp,      SYS_memfd_create,
                          SYS_execveat,     SYS_io_uring_setup,  SYS_userfaultfd,  SYS_socket,
                          SYS_kill,         SYS_setrlimit,       SYS_prlimit64,    SYS_prctl,
                          SYS_capset,       SYS_setuid,          SYS_personality,  SYS_process_vm_readv,
                          SYS_sethostname,  SYS_init_module,     SYS_finit_module, SYS_fanotify_init,
                          SYS_kexec_load,   SYS_syslog,          SYS_chmod,        SYS_fchmodat,
                          SYS_chown,        SYS_unlink,          SYS_swapon,       SYS_reboot,
                          SYS_settimeofday, SYS_shmget,          SYS_mq_open,      SYS_name_to_handle_at}) {
    EXPECT_EQ(attempt(*confined, {"call", std::to_string(call)}), "EPERM\n") << call;
  }
  // It is the filter that refuses them, not the lack of a capability.
  rules.system_calls.clear();
  const auto unfiltered = Confinement::Prepare(rules);
  ASSERT_OK(unfiltered);
  for (const long call : {SYS_mount, SYS_setns, SYS_unshare, SYS_bpf, SYS_keyctl, SYS_open_by_handle_at,
                          SYS_ioctl, SYS_quotactl, SYS_fsopen, SYS_setxattr, SYS_prlimit64, SYS_socket}) {
    EXPECT_EQ(attempt(*unfiltered, {"call", std::to_string(call)}), "succeeded") << call;
  }
}

TEST_F(ErofsMakerTest, ALayerThatAsksForTooMuchFailsAndLeavesNothing) {
  Write("sparse", "");
  std::filesystem::resize_file(layer_ + "/sparse", 1ULL << 42);
  EXPECT_THAT(ErofsMaker({.image_bytes = kMiB}).Make(layer_, image_),
              HasStatus(StatusCode::kResourceExhausted, "larger than 1MiB (layers.convert_size)"));
  EXPECT_FALSE(std::filesystem::exists(image_));
  EXPECT_THAT(ErofsMaker({}).Make(layer_, image_, kMiB),
              HasStatus(StatusCode::kResourceExhausted, "larger than 1MiB (No space left for "));
  EXPECT_FALSE(std::filesystem::exists(image_));
  // Wherever the limit falls in what is written.
  Write("noise", std::string(3 << 20, 'n'));
  std::filesystem::remove(layer_ + "/sparse");
  for (const uint64_t most : {uint64_t{12 << 10}, 464 * kKiB, kMiB + 4 * kKiB, 2 * kMiB + 100}) {
    EXPECT_THAT(
        ErofsMaker({}).Make(layer_, image_, most),
        HasStatus(StatusCode::kResourceExhausted, "what layers.disk_reserve and layers.disk_budget leave"))
        << most;
    EXPECT_FALSE(std::filesystem::exists(image_));
  }
  Write("sparse", "");
  std::filesystem::resize_file(layer_ + "/sparse", 1ULL << 42);
  EXPECT_THAT(ErofsMaker({.time = seconds(1), .image_bytes = 16ULL << 30}).Make(layer_, image_),
              Not(HasStatus(StatusCode::kOk)));
  EXPECT_FALSE(std::filesystem::exists(image_));

  std::filesystem::remove(layer_ + "/sparse");
  for (int i = 0; i < 3000; ++i) Write(std::to_string(i), "");
  EXPECT_OK(ErofsMaker({.memory_bytes = 64 * kMiB}).Make(layer_, image_));
  EXPECT_THAT(ErofsMaker({.memory_bytes = 10 * kMiB}).Make(layer_, image_),
              HasStatus(StatusCode::kResourceExhausted, "takes more than 10MiB (layers.convert_memory)"));
  EXPECT_FALSE(std::filesystem::exists(image_));
}

TEST_F(ErofsMakerTest, NamesInErrorsAreEscapedAndCut) {
  const std::string name = "\x1b[2J\n" + std::string(250, 'n');
  std::string folder = layer_;
  for (int i = 0; i < 6; ++i) folder += "/" + std::string(200, '\x07');
  std::filesystem::create_directories(folder);
  Write(name, "content");
  const absl::Status status = ErofsMaker({}).Make(layer_, image_).status();
  EXPECT_THAT(status, HasStatus(StatusCode::kInvalidArgument, "a name of 255 bytes"));
  EXPECT_THAT(Message(status), HasSubstr("/\\x1b[2J\\nnnn"));
  EXPECT_THAT(Message(status), Not(HasSubstr("\x1b")));
  std::filesystem::rename(layer_ + "/" + name, folder + "/" + name);
  const std::string cut = Message(ErofsMaker({}).Make(layer_, image_).status());
  EXPECT_THAT(cut, HasSubstr("\\x07\\x07"));
  EXPECT_THAT(cut, ::testing::EndsWith("..."));
  EXPECT_LT(cut.size(), 1400u);
}

}  // namespace
}  // namespace lamina::layers
