// sha256. A library of its own, lamina_sha256, by OpenSSL's low-level functions: EVP's would bring its
// providers, more than the rest of the static shim.
#pragma once

#include <openssl/sha.h>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

namespace lamina {

using Sha256Bytes = std::array<unsigned char, 32>;

// One sha256 after another. Not thread-safe.
class Sha256Hasher {
 public:
  Sha256Hasher();
  void Update(const void* data, size_t bytes);
  // Of what was added since the start or the last Finish.
  Sha256Bytes Finish();

 private:
  SHA256_CTX context_;
};

// 64 lower-case hex digits.
std::string Hex(const Sha256Bytes& digest);

// sha256 of `data`, 64 hex digits.
std::string Sha256(std::string_view data);

}  // namespace lamina
