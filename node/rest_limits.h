// What REST gives at most to those who reach its port.
#pragma once

#include <chrono>
#include <cstddef>

namespace lamina::node {

struct RestLimits {
  size_t connections = 64;      // with one more, the one that has kept us waiting longest is closed
  size_t head_bytes = 8 << 10;  // request line and fields
  size_t fields = 64;
  std::chrono::milliseconds head{5'000};     // for all of a head, with the TLS handshake before the first one
  std::chrono::milliseconds idle{30'000};    // between an answer and the next request
  std::chrono::milliseconds write{10'000};   // for the client to take its answer
  std::chrono::milliseconds linger{1'000};   // for a client that still sends to read why it was refused
  std::chrono::milliseconds answer{30'000};  // for laminad to answer
  size_t calls = 4;                          // answered at a time; others wait
  size_t answer_bytes = 32 << 20;            // of one answer
  size_t untaken_bytes = 32 << 20;           // of all answers that clients have yet to take; 503 beyond it
  size_t small_bytes = 4 << 10;              // an answer that is always given: probes
};

}  // namespace lamina::node
