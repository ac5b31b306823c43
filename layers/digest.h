#pragma once

#include <openssl/evp.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "layers/patience.h"

namespace lamina::layers {

using Sha256Bytes = std::array<unsigned char, 32>;

// One sha256 after another. Not thread-safe.
class Sha256Hasher {
 public:
  static absl::StatusOr<Sha256Hasher> Create();
  void Update(const void* data, size_t bytes);
  // Of what was added since the start or the last Finish.
  Sha256Bytes Finish();

 private:
  using Context = std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)>;
  explicit Sha256Hasher(Context context) : context_(std::move(context)) {}
  Context context_;
};

// 64 lower-case hex digits.
std::string Hex(const Sha256Bytes& digest);

// sha256 of `bytes` bytes at `offset` of the file, 64 hex digits. DataLoss when the file ends earlier.
absl::StatusOr<std::string> DigestOf(const std::string& path, uint64_t offset, uint64_t bytes,
                                     const Patience& patience = {});

// sha256 of `data`, 64 hex digits.
absl::StatusOr<std::string> Sha256(std::string_view data);

}  // namespace lamina::layers
