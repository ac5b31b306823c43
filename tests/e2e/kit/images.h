// The images that the tests run. Debian packages are downloaded once and kept in a cache folder.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/e2e/kit/image.h"

namespace lamina::e2e {

inline constexpr char kPauseImage[] = "localhost/lamina/pause:1";
inline constexpr char kBusyboxImage[] = "localhost/lamina/busybox:1";
inline constexpr char kOddImage[] = "localhost/lamina/odd:1";
inline constexpr char kBigImage[] = "localhost/lamina/big:1";
inline constexpr char kNginxImage[] = "localhost/lamina/nginx:1";

// Every image has busybox in /bin (its commands as hard links) and the probe as /probe.
class ImageKit {
 public:
  // `cache`: folder for packages, made if missing; shared by concurrent runs.
  static absl::StatusOr<ImageKit> Create(const std::string& cache, const std::string& probe_path);

  Image Pause() const;    // one layer
  Image Busybox() const;  // three layers; user "nobody" 65534, group "crew" 77 with member "sailor" 1000
  Image Odd() const;      // whiteouts, links, attributes, devices, modes, names
  Image Big() const;      // busybox and a layer of 40 MiB that no compression shrinks
  absl::StatusOr<Image> Nginx() const;  // a real server with its libraries, a layer for each Debian package

 private:
  std::string cache_, busybox_, probe_;
  std::vector<std::string> applets_;
};

}  // namespace lamina::e2e
