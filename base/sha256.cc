// The functions are deprecated since OpenSSL 3.0, and there in all its versions.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "base/sha256.h"

#include <fmt/format.h>

namespace lamina {

Sha256Hasher::Sha256Hasher() { SHA256_Init(&context_); }

void Sha256Hasher::Update(const void* data, size_t bytes) { SHA256_Update(&context_, data, bytes); }

Sha256Bytes Sha256Hasher::Finish() {
  Sha256Bytes digest{};
  SHA256_Final(digest.data(), &context_);
  SHA256_Init(&context_);
  return digest;
}

std::string Hex(const Sha256Bytes& digest) {
  std::string hex;
  for (const unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

std::string Sha256(std::string_view data) {
  Sha256Hasher hasher;
  hasher.Update(data.data(), data.size());
  return Hex(hasher.Finish());
}

}  // namespace lamina
