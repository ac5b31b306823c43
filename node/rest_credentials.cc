#include "node/rest_credentials.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/system/error_code.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "base/file_system.h"
#include "base/status.h"

namespace lamina::node {
namespace {

namespace ssl = boost::asio::ssl;

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxTokenBytes = 4096;
constexpr std::string_view kScheme = "Bearer ";

bool Visible(char c) { return c > ' ' && c <= '~'; }

}  // namespace

absl::StatusOr<RestCredentials> RestCredentials::Load(RestFiles files) {
  if (files.certificate.empty() != files.key.empty())
    return absl::InvalidArgumentError("a certificate needs its key, and a key its certificate");
  RestCredentials credentials;
  credentials.files_ = std::move(files);
  RETURN_IF_ERROR(credentials.Refresh());
  return credentials;
}

absl::Status RestCredentials::Refresh() {
  absl::Status status;
  if (!files_.certificate.empty()) {
    Stamps stamps = StampsOf({files_.certificate, files_.key});
    if (stamps != tls_stamps_) {
      tls_stamps_ = std::move(stamps);
      status = LoadTls();
    }
  }
  if (!files_.token.empty()) {
    Stamps stamps = StampsOf({files_.token});
    if (stamps != token_stamps_) {
      token_stamps_ = std::move(stamps);
      const absl::Status token = LoadToken();
      if (status.ok()) status = token;
    }
  }
  return status;
}

bool RestCredentials::Admits(std::string_view authorization) const {
  if (files_.token.empty()) return true;
  if (authorization.size() < kScheme.size() ||
      !absl::EqualsIgnoreCase({authorization.data(), kScheme.size()}, {kScheme.data(), kScheme.size()}))
    return false;
  // Digests are of one length: neither how much of the token was right nor how long it is can be measured.
  const Digest said = DigestOf(authorization.substr(kScheme.size()));
  return CRYPTO_memcmp(said.data(), token_.data(), said.size()) == 0;
}

RestCredentials::Stamps RestCredentials::StampsOf(const std::vector<std::string>& paths) {
  Stamps stamps;
  for (const std::string& path : paths) {
    struct stat info {};
    if (stat(path.c_str(), &info) != 0) info = {};
    for (const int64_t number :
         {static_cast<int64_t>(info.st_ino), static_cast<int64_t>(info.st_size),
          static_cast<int64_t>(info.st_mtim.tv_sec), static_cast<int64_t>(info.st_mtim.tv_nsec)})
      stamps.push_back(number);
  }
  return stamps;
}

RestCredentials::Digest RestCredentials::DigestOf(std::string_view text) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

absl::Status RestCredentials::LoadTls() {
  ASSIGN_OR_RETURN(const std::string certificate, FileSystem::Real().Read(files_.certificate, kMaxFileBytes));
  ASSIGN_OR_RETURN(const std::string key, FileSystem::Real().Read(files_.key, kMaxFileBytes));
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
  SSL_CTX_set_mode(context->native_handle(), SSL_MODE_RELEASE_BUFFERS);
  // Nothing here asks at a terminal for a passphrase.
  SSL_CTX_set_default_passwd_cb(context->native_handle(), [](char*, int, int, void*) { return 0; });
  boost::system::error_code error;
  context->use_certificate_chain(boost::asio::buffer(certificate), error);
  if (error) return InvalidArgument("{}: no certificate in PEM: {}", files_.certificate, error.message());
  context->use_private_key(boost::asio::buffer(key), ssl::context::pem, error);
  if (error) {
    return InvalidArgument("{}: not the private key in PEM of the certificate in {}: {}", files_.key,
                           files_.certificate, error.message());
  }
  if (SSL_CTX_check_private_key(context->native_handle()) != 1)
    return InvalidArgument("{}: not the key of the certificate in {}", files_.key, files_.certificate);
  tls_ = std::move(context);
  return absl::OkStatus();
}

absl::Status RestCredentials::LoadToken() {
  ASSIGN_OR_RETURN(const std::string content, FileSystem::Real().Read(files_.token, kMaxFileBytes));
  const absl::string_view token = absl::StripAsciiWhitespace(content);
  if (token.empty() || token.size() > kMaxTokenBytes || !std::all_of(token.begin(), token.end(), Visible)) {
    return InvalidArgument("{}: a bearer token is one word of 1 to {} visible ASCII characters", files_.token,
                           kMaxTokenBytes);
  }
  token_ = DigestOf({token.data(), token.size()});
  return absl::OkStatus();
}

}  // namespace lamina::node
