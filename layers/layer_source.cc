#include "layers/layer_source.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/status.h"

namespace lamina::layers {

// Snapshots never change once they are layers: path, inode and birth time name the content. A file could be
// written again: its size and times belong to the name.
absl::StatusOr<LayerSource> DescribeSource(const std::string& path) {
  struct statx info {};
  if (statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &info) != 0)
    return ErrnoStatus(errno, "layer " + path);
  LayerSource source{path, S_ISDIR(info.stx_mode), ""};
  if (!source.is_directory && !S_ISREG(info.stx_mode))
    return InvalidArgument("layer {}: neither a directory nor an image file", path);
  source.key = fmt::format("{}|{}:{}|{}|{}.{:09}", path, info.stx_dev_major, info.stx_dev_minor, info.stx_ino,
                           info.stx_btime.tv_sec, info.stx_btime.tv_nsec);
  if (!source.is_directory) {
    source.key += fmt::format("|{}|{}.{:09}|{}.{:09}", info.stx_size, info.stx_mtime.tv_sec,
                              info.stx_mtime.tv_nsec, info.stx_ctime.tv_sec, info.stx_ctime.tv_nsec);
  }
  return source;
}

}  // namespace lamina::layers
