// Images under way: one at a time for a layer, whoever asks for it, and no more at a time than the node
// allows.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "layers/layer_image.h"
#include "layers/layer_types.h"
#include "layers/patience.h"

namespace lamina::layers {

// Thread-safe. An image is made on a thread of its own, for as long as anybody who asked is left: who gives
// up leaves it to the others, the last one ends it.
class Conversions {
 public:
  // Ends soon once `stop` is requested, and leaves nothing.
  using Work = std::function<absl::StatusOr<LayerImagePtr>(const std::stop_token& stop)>;

  // `most` at a time; 0: one for each core, at least two.
  explicit Conversions(size_t most);
  // Ends what is under way, and waits for it.
  ~Conversions();

 private:
  struct Job;

 public:
  // One call's interest in a layer. While anyone has one, an image that was made is kept for the others.
  class Ticket {
   public:
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

    // The layer's image; `work` makes it, unless another ticket's is under way or done. Its error is that of
    // all who wait. The caller's own end: Cancelled, DeadlineExceeded "<what>: …".
    absl::StatusOr<LayerImagePtr> Get(const Patience& patience, std::string_view what, Work work);
    // Get began the work itself.
    bool began() const { return began_; }

   private:
    friend class Conversions;
    Ticket(Conversions& all, std::shared_ptr<Job> job) : all_(all), job_(std::move(job)) {}
    Conversions& all_;
    std::shared_ptr<Job> job_;
    bool began_ = false;
  };
  std::unique_ptr<Ticket> Join(const std::string& source_key);
  // Nobody has a ticket.
  bool idle() const;

  // A turn to convert; it ends with the object.
  class Turn {
   public:
    Turn(Turn&& other) noexcept : all_(other.all_), file_(std::exchange(other.file_, "")) {}
    ~Turn();

   private:
    friend class Conversions;
    Turn(Conversions& all, std::string file) : all_(all), file_(std::move(file)) {}
    Conversions& all_;
    std::string file_;
  };
  // Waits for one. `file` is what is written, for progress. Cancelled when `stop` is requested first.
  absl::StatusOr<Turn> Begin(const std::string& source, const std::string& file, const std::stop_token& stop);
  std::vector<ConversionInfo> under_way() const;

 private:
  struct UnderWay {
    std::string source;
    std::chrono::steady_clock::time_point start;
  };

  void Run(std::shared_ptr<Job> job, Work work);
  void Leave(const std::shared_ptr<Job>& job);
  void WakeAll();

  const size_t most_;
  mutable Mutex mutex_;  // none is taken under it
  CondVar changed_;
  std::map<std::string, std::shared_ptr<Job>> jobs_ GUARDED_BY(mutex_);  // by source key
  std::map<std::string, UnderWay> under_way_ GUARDED_BY(mutex_);         // by file
  size_t threads_ GUARDED_BY(mutex_) = 0;
};

}  // namespace lamina::layers
