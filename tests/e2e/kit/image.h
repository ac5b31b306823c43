// Container images from a description: layers as tar archives, put together as an OCI layout that containerd
// imports.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::e2e {

struct Entry {
  char type = 'f';           // f file, d folder, l symbolic link, h hard link, c and b devices, p FIFO
  std::string path = "";     // no leading slash
  std::string content = "";  // of a file; where a link points
  uint32_t mode = 0644;
  uint32_t uid = 0, gid = 0;
  int64_t mtime = 1'600'000'000;
  uint32_t major = 0, minor = 0;
  std::map<std::string, std::string> xattrs = {};
};

// One layer, in the order in which the tar will hold it. Each call appends; With… change the last entry.
class Layer {
 public:
  Layer& File(const std::string& path, std::string content, uint32_t mode = 0644);
  Layer& Dir(const std::string& path, uint32_t mode = 0755);
  Layer& Symlink(const std::string& path, const std::string& target);
  Layer& HardLink(const std::string& path, const std::string& to);
  Layer& Device(const std::string& path, char type, uint32_t major, uint32_t minor, uint32_t mode = 0644);
  Layer& Fifo(const std::string& path, uint32_t mode = 0644);
  // The lower layers' `path` is gone.
  Layer& Whiteout(const std::string& path);
  // The folder hides what lower layers have in it.
  Layer& Opaque(const std::string& folder);
  Layer& WithOwner(uint32_t uid, uint32_t gid);
  Layer& WithXattr(const std::string& name, std::string value);
  Layer& Add(Entry entry);

  const std::vector<Entry>& entries() const { return entries_; }
  std::vector<Entry>& entries() { return entries_; }
  absl::StatusOr<std::string> Tar() const;

 private:
  std::vector<Entry> entries_;
};

// The entries of a tar file (as dpkg-deb --fsys-tarfile writes) that `keep` wants.
absl::StatusOr<Layer> ReadTar(const std::string& path,
                              const std::function<bool(const std::string& path)>& keep);

struct Image {
  std::string name;           // "localhost/lamina/x:1"
  std::vector<Layer> layers;  // lowest first
  std::vector<std::string> env = {}, entrypoint = {}, command = {};
  std::string working_dir = "", user = "";
};

absl::Status WriteOciArchive(const Image& image, const std::string& path);

// `initramfs` with these files over it, at `path`: the kernel unpacks archives that follow one another.
absl::Status ExtendInitramfs(const std::string& initramfs, const Layer& files, const std::string& path);

// One line for each path that a container of this image shows, sorted: the form that the probe program prints
// (see probe.cc): "path type mode uid gid nlink mtime what xattrs".
std::vector<std::string> ExpectedTree(const Image& image);

// In hexadecimal.
std::string Sha256(std::string_view data);
// FNV-1a, which the probe uses for contents.
uint64_t ContentHash(std::string_view data);
// Printable form of a name: bytes outside 33..126 and backslashes as \xNN.
std::string EscapeName(std::string_view name);

}  // namespace lamina::e2e
