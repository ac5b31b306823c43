#pragma once

#include <deque>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "base/ttrpc/client.h"

namespace google::protobuf {
class MessageLite;
}

namespace lamina::cri {

// Tells containerd what happened (topic "/tasks/exit", type "containerd.events.TaskExit"), in order, from a
// thread of its own. Thread-safe. While containerd is away events wait; over 1024 the oldest are dropped. One
// that containerd itself refuses five times is given up.
class EventPublisher {
 public:
  // `address`: containerd's ttrpc socket ($TTRPC_ADDRESS); empty: events are dropped.
  EventPublisher(std::string address, std::string ns);
  ~EventPublisher();

  void Publish(const std::string& topic, const std::string& type_url,
               const google::protobuf::MessageLite& event);
  // Waits until all is sent, at most `timeout`.
  void Flush(std::chrono::milliseconds timeout);

 private:
  struct State;
  static void Run(const std::shared_ptr<State>& state);
  std::shared_ptr<State> state_;
};

}  // namespace lamina::cri
