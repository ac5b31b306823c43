#include "tests/e2e/kit/images.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
using std::chrono::minutes;
using std::chrono::seconds;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return MakeStatus(absl::StatusCode::kNotFound, "cannot read {}", path);
  std::stringstream data;
  data << in.rdbuf();
  return data.str();
}

std::string FindDeb(const std::string& cache, const std::string& package) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(cache, error)) {
    const std::string name = entry.path().filename();
    if (name.rfind(package + "_", 0) == 0 && name.size() > 4 && name.substr(name.size() - 4) == ".deb")
      return entry.path();
  }
  return "";
}

// The package's files as a layer, without documentation and such.
absl::StatusOr<Layer> DebLayer(const std::string& cache, const std::string& package) {
  if (FindDeb(cache, package).empty()) {
    const std::vector<std::string> download = {
        "sh", "-c", "cd \"$0\" && exec apt-get -q -o APT::Sandbox::User=root download \"$1\"", cache,
        package};
    if (!RunChecked(download, minutes(3)).ok()) {
      RETURN_IF_ERROR(RunChecked({"apt-get", "-q", "update"}, minutes(3)));
      RETURN_IF_ERROR(RunChecked(download, minutes(3)));
    }
  }
  const std::string deb = FindDeb(cache, package);
  if (deb.empty())
    return MakeStatus(absl::StatusCode::kNotFound, "apt-get download {} left nothing in {}", package, cache);
  const std::string tar = deb + ".tar";
  RETURN_IF_ERROR(
      RunChecked({"sh", "-c", "exec dpkg-deb --fsys-tarfile \"$0\" >\"$1\"", deb, tar}, minutes(1)));
  auto layer = ReadTar(tar, [](const std::string& path) {
    for (const char* dropped :
         {"usr/share/", "usr/lib/x86_64-linux-gnu/gconv", "etc/init.d", "lib/systemd"}) {
      if (path.rfind(dropped, 0) == 0) return false;
    }
    return true;
  });
  fs::remove(tar);
  return layer;
}

// vfs_cap_data of version 2 with the effective flag: what `setcap <bit>+ep` writes.
std::string FileCapability(int bit) {
  const uint32_t words[5] = {0x02000001, 1U << bit, 0, 0, 0};
  return {reinterpret_cast<const char*>(words), sizeof words};
}

std::string Noise(size_t bytes, uint64_t state) {
  std::string data(bytes, '\0');
  for (size_t at = 0; at + 8 <= bytes; at += 8) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    memcpy(&data[at], &state, 8);
  }
  return data;
}

constexpr char kNginxConfig[] = R"(daemon off;
user root;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
  access_log /dev/stdout;
  server {
    listen 80;
    root /srv/www;
  }
}
)";

}  // namespace

absl::StatusOr<ImageKit> ImageKit::Create(const std::string& cache, const std::string& probe_path) {
  std::error_code error;
  fs::create_directories(cache, error);
  const UniqueFd lock(open((cache + "/lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644));
  if (!lock || flock(lock.get(), LOCK_EX) != 0) return ErrnoStatus(errno, "lock " + cache + "/lock");

  ImageKit kit;
  kit.cache_ = cache;
  ASSIGN_OR_RETURN(kit.probe_, ReadFile(probe_path));
  ASSIGN_OR_RETURN(const Layer package, DebLayer(cache, "busybox-static"));
  for (const Entry& entry : package.entries()) {
    if (entry.type == 'f' && entry.path.size() >= 11 &&
        entry.path.substr(entry.path.size() - 11) == "bin/busybox")
      kit.busybox_ = entry.content;
  }
  if (kit.busybox_.empty()) return absl::NotFoundError("the package busybox-static has no bin/busybox");
  const std::string binary = cache + "/busybox";
  std::ofstream(binary, std::ios::binary) << kit.busybox_;
  chmod(binary.c_str(), 0755);
  ASSIGN_OR_RETURN(const CommandResult list, RunCommand({binary, "--list"}, seconds(10)));
  std::istringstream names(list.output);
  for (std::string name; std::getline(names, name);) {
    if (!name.empty() && name != "busybox") kit.applets_.push_back(name);
  }
  if (kit.applets_.size() < 100) return absl::InternalError("busybox --list names too few commands");
  return kit;
}

Image ImageKit::Pause() const {
  Layer layer;
  layer.Dir("bin").File("bin/busybox", busybox_, 0755);
  return {kPauseImage, {layer}, {}, {"/bin/busybox", "sleep", "2000000000"}, {}, "", ""};
}

Image ImageKit::Busybox() const {
  Layer base, accounts, extras;
  base.Dir("bin").File("bin/busybox", busybox_, 0755).File("probe", probe_, 0755);
  for (const std::string& applet : applets_) base.HardLink("bin/" + applet, "bin/busybox");
  accounts.Dir("etc")
      .File("etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nsailor:x:1000:1000::/home/sailor:/bin/sh\n"
            "nobody:x:65534:65534:nobody:/:/bin/sh\n")
      .File("etc/group", "root:x:0:\ncrew:x:77:sailor\nsailor:x:1000:\nnogroup:x:65534:\n")
      .File("etc/shadow", "root:*:19000:0:99999:7:::\n", 0600)
      .Dir("root", 0700)
      .Dir("home")
      .Dir("home/sailor")
      .WithOwner(1000, 1000);
  extras.Dir("tmp", 01777).Dir("run").Dir("var").Dir("srv").File("srv/hello", "hello from an image\n");
  for (const char* mount_point : {"proc", "sys", "dev"}) extras.Dir(mount_point, 0555);
  return {kBusyboxImage, {base, accounts, extras}, {"PATH=/bin", "FROM_IMAGE=yes"}, {}, {"sh"}, "", ""};
}

Image ImageKit::Odd() const {
  Image image = Busybox();
  image.name = kOddImage;
  Layer lower, upper;
  lower.Dir("odd")
      .File("odd/kept", "kept\n")
      .File("odd/removed", "must not be seen\n")
      .Dir("odd/removed-folder")
      .File("odd/removed-folder/inner", "must not be seen\n")
      .Dir("odd/opaque")
      .File("odd/opaque/old", "must not be seen\n")
      .File("odd/file-to-folder", "was a file\n")
      .Dir("odd/folder-to-file")
      .File("odd/folder-to-file/inner", "must not be seen\n")
      .File("odd/changed", "old\n")
      .File("odd/hard-a", "three names\n", 0640)
      .WithOwner(12, 34)
      .HardLink("odd/hard-b", "odd/hard-a")
      .HardLink("odd/hard-c", "odd/hard-a")
      .File("odd/empty", "")
      .File("odd/owned", "large ids\n", 0600)
      .WithOwner(1'234'567, 7'654'321)
      .File("odd/unreadable", "mode 0\n", 0)
      .Dir("odd/sticky", 01777)
      .Dir("odd/setgid", 02755)
      .WithOwner(0, 77)
      .Symlink("odd/link", "kept")
      .Symlink("odd/absolute-link", "/odd/kept")
      .Symlink("odd/dangling", "nowhere/at all")
      .Symlink("odd/long-link", std::string(900, 'x'))
      .Device("odd/null", 'c', 1, 3, 0666)
      .Device("odd/disk", 'b', 8, 17, 0600)
      .Fifo("odd/fifo", 0622)
      .File("odd/setuid", probe_, 04755)
      .File("odd/capable", probe_, 0755)
      .WithXattr("security.capability", FileCapability(13))  // CAP_NET_RAW
      .File("odd/attributes", "has two\n")
      .WithXattr("user.lamina", "value with \x01 and \xff")
      .WithXattr("user.empty-ish", "0")
      .File("odd/with space", "1")
      .File("odd/new\nline", "2")
      .File("odd/ütf-8 ☃", "3")
      .File("odd/back\\slash \"quotes\" $dollar *star", "4")
      .File(std::string("odd/") + std::string(254, 'n'), "5")  // mkfs.erofs 1.5 cuts off a 255th byte
      .File("odd/invalid-utf8-\xff\xfe", "6")
      .File("odd/.hidden", "7")
      .File("odd/zeros", std::string(3 << 20, '\0'))
      .File("odd/noise", Noise(1'000'001, 42))
      .Dir("odd/many");
  for (int i = 0; i < 600; ++i) lower.File(fmt::format("odd/many/{:04d}", i), std::to_string(i));
  std::string deep = "odd/deep";
  lower.Dir(deep);
  for (int i = 0; i < 30; ++i) lower.Dir(deep += "/level-of-a-deep-tree");
  lower.File(deep + "/bottom", "found\n");
  upper.Whiteout("odd/removed")
      .Whiteout("odd/removed-folder")
      .Dir("odd/opaque")
      .Opaque("odd/opaque")
      .File("odd/opaque/new", "new\n")
      .Whiteout("odd/file-to-folder")
      .Dir("odd/file-to-folder")
      .File("odd/file-to-folder/inner", "is a folder\n")
      .Whiteout("odd/folder-to-file")
      .File("odd/folder-to-file", "is a file\n")
      .File("odd/changed", "new\n", 0604);
  image.layers.push_back(std::move(lower));
  image.layers.push_back(std::move(upper));
  return image;
}

Image ImageKit::Big() const {
  Image image = Busybox();
  image.name = kBigImage;
  Layer big;
  big.Dir("big").File("big/noise", Noise(40 << 20, 7));
  image.layers.push_back(std::move(big));
  return image;
}

absl::StatusOr<Image> ImageKit::Nginx() const {
  Image image = Busybox();
  image.name = kNginxImage;
  const UniqueFd lock(open((cache_ + "/lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644));
  if (!lock || flock(lock.get(), LOCK_EX) != 0) return ErrnoStatus(errno, "lock " + cache_ + "/lock");
  for (const char* package : {"libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g", "nginx"}) {
    ASSIGN_OR_RETURN(Layer layer, DebLayer(cache_, package));
    image.layers.push_back(std::move(layer));
  }
  Layer site;
  site.Dir("etc/nginx")
      .File("etc/nginx/nginx.conf", kNginxConfig)
      .Dir("var/log")
      .Dir("var/log/nginx")
      .Dir("var/lib")
      .Dir("var/lib/nginx", 0700)
      .Dir("srv/www")
      .File("srv/www/index.html", "served by nginx in a virtual machine\n")
      .File("srv/www/blob", Noise(2 << 20, 99));
  image.layers.push_back(std::move(site));
  image.command = {"/usr/sbin/nginx"};
  return image;
}

}  // namespace lamina::e2e
