// What REST is asked to show and who may ask: a certificate with its key, a bearer token. Each in a file that
// may be replaced while laminad runs, as the kubelet does with a Secret's.
#pragma once

#include <array>
#include <boost/asio/ssl/context.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::node {

struct RestFiles {
  std::string certificate, key;  // PEM; both or neither
  std::string token;             // one line; empty: nobody is asked for one
};

// Used by one thread at a time.
class RestCredentials {
 public:
  // InvalidArgument or the file's error, with its path, when one cannot be used.
  static absl::StatusOr<RestCredentials> Load(RestFiles files);

  // Looks whether the files have changed, by three stat(2) at most, and takes them anew. What cannot be used
  // is an error, once for each change; what was there before goes on.
  absl::Status Refresh();

  // Null: plain HTTP. It stays valid for those who hold it.
  const std::shared_ptr<boost::asio::ssl::context>& tls() const { return tls_; }
  bool asks_token() const { return !files_.token.empty(); }
  // `authorization`: the field's value. Takes the same time whatever it holds. True where no token is asked
  // for.
  bool Admits(std::string_view authorization) const;

 private:
  using Digest = std::array<unsigned char, 32>;
  using Stamps = std::vector<int64_t>;  // what tells one version of some files from another
  static Stamps StampsOf(const std::vector<std::string>& paths);
  static Digest DigestOf(std::string_view text);
  absl::Status LoadTls();
  absl::Status LoadToken();

  RestFiles files_;
  Stamps tls_stamps_, token_stamps_;
  std::shared_ptr<boost::asio::ssl::context> tls_;
  Digest token_{};
};

}  // namespace lamina::node
