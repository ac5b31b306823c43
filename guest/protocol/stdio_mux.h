// Many byte streams with credits over one duplex channel (virtio-serial port "lamina.stdio"). Both ends use
// this class.
//
// Frame: u32 LE stream id, u8 kind, 3 zero bytes, u32 LE length, then `length` bytes (kind kData only, at
// most 64 KiB). kinds: 1 kData, 2 kCredit (length = bytes granted, no payload), 3 kEof (sender closes its
// direction), 4 kReset (the receiver wants no more: it drops what comes and the sender's write fails with
// EPIPE semantics). A sender may have at most the granted credit in flight per stream (initial window 256
// KiB), so a stream that nobody reads stalls itself and no other. A peer that breaks a rule (unknown kind,
// over its credit, over 64 KiB) loses the channel: it is not trusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/unique_fd.h"
#include "guest/protocol/contract.h"

namespace lamina::guest {

struct StdioMuxOptions {
  // A read of 0 means "no peer yet" (the guest's end of a virtio-serial port), not the end; a small poll
  // interval is used then.
  bool persistent = false;
  // What the peer may send, in all, on streams that are not attached here yet; more costs it the channel. 0:
  // such data is dropped, for the side that attaches a stream before it tells the peer of it: the host.
  size_t early_bytes = 0;
};

// Thread-safe. One thread inside runs a poll loop that pumps between channel and the streams' descriptors.
//
// Memory: for the channel at most 1 MiB, whatever the peer sends and however little it reads; a window for
// each stream that is attached here and whose sink takes nothing; and the early bytes.
class StdioMux {
 public:
  // Owns `channel` (non-blocking is set by the mux).
  static std::unique_ptr<StdioMux> Create(UniqueFd channel, StdioMuxOptions options = {});
  ~StdioMux();

  // What is read from `source` (owned; pipe, FIFO, pty master) goes to the peer's stream; EOF (or EIO of a
  // pty) sends kEof; `done` (may be null) runs on the mux thread after the last byte has been sent and
  // acknowledged by credit or the stream was reset. InvalidArgument when `stream_id` is 0 or has a source
  // already.
  absl::Status AttachSource(uint32_t stream_id, UniqueFd source, std::function<void()> done);

  // What the peer sends on the stream is written to `sink` (owned; closed after kEof once all is written);
  // `done` runs after that or when the sink broke (EPIPE; then kReset is sent).
  absl::Status AttachSink(uint32_t stream_id, UniqueFd sink, std::function<void()> done);

  // Drops the stream in both directions and forgets it; late frames for it are ignored. Idempotent.
  void Close(uint32_t stream_id);

  // OK while the channel lives; else why it ended.
  absl::Status status() const;

  // The memory that it holds for its peer.
  size_t buffered_bytes() const;

 private:
  class Impl;
  explicit StdioMux(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace lamina::guest
