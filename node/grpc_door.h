// gRPC's socket: who connects is looked at before gRPC hears of him.
#pragma once

#include <grpcpp/server.h>
#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "base/unix_peer.h"

namespace lamina::node {

class GrpcDoor {
 public:
  // Listens at `path` (mode 0600; a stale socket is replaced) and gives `server`, which has no address of its
  // own and outlives the door, the connections of root and of our own user, at most `most` at a time; others
  // are closed. ResourceExhausted when its thread cannot be made.
  static absl::StatusOr<std::unique_ptr<GrpcDoor>> Open(std::string path, grpc::Server& server,
                                                        size_t most = 64);
  // Nobody new is taken; connections that are open are the server's.
  ~GrpcDoor();

 private:
  GrpcDoor(std::string path, grpc::Server& server, size_t most)
      : path_(std::move(path)), server_(server), most_(most) {}
  void Run();
  bool Accept();
  // Those that were given to the server and are open still. gRPC tells nobody when it closes one, but then
  // its number is free or another file's.
  size_t StillOpen();

  const std::string path_;
  grpc::Server& server_;
  const size_t most_;
  UniqueFd listener_, wake_;
  Doorkeeper keeper_;
  std::vector<std::pair<int, ino_t>> given_;
  std::thread thread_;
};

}  // namespace lamina::node
