// One sandbox's requests are served one after another; those of others side by side.
#pragma once

#include <set>
#include <string>

#include "base/mutex.h"

namespace lamina::node {

// Thread-safe.
class Turns {
 public:
  // Waits for the sandbox's turn and holds it. Taken before every other lock of the node.
  class Turn {
   public:
    Turn(Turns& turns, std::string id);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    Turns& turns_;
    const std::string id_;
  };

 private:
  Mutex mutex_;
  std::set<std::string> taken_ GUARDED_BY(mutex_);
  CondVar ended_;
};

}  // namespace lamina::node
