#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace lamina::testing {

// A folder that is gone with the object.
class TempDir {
 public:
  TempDir() {
    char path[] = "/tmp/lamina-test-XXXXXX";
    path_ = mkdtemp(path);
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace lamina::testing
